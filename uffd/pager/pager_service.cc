#include "uffd/pager/pager_service.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <new>

#include "uffd/niceness.h"

namespace fileballoon {
namespace {

// How often the thread looks after the store and its goal when nothing else wakes it.
constexpr std::chrono::milliseconds kTick{200};
// Pause between two looks whether faults still wait; about what one answer takes.
constexpr std::chrono::microseconds kYield{50};
// Paging out waits at most this long for faults at a time, so that it goes on at a trickle below a
// VM that faults without end; giving_way is what holds it back then.
constexpr std::chrono::milliseconds kMaxYield{20};
// Close to a ceiling (kClose) the thread looks this often whether the reserve is touched or faults
// wait; the look is a system call. Farther away a guest needs longer than kTick to come there, and
// one that is faster waits at the ceiling.
constexpr std::chrono::milliseconds kCeilingTick{5};
constexpr Bytes kClose = Bytes::mib(128);
// Compressing must not take the CPU from who answers faults or runs the guest; where faults wait
// for it, it is the guest that runs.
constexpr int kNice = 10;
constexpr int kNiceInAHurry = 0;
// Looks take at most about this part of the time, counted in CPU time, so that a crowded machine
// does not make them rare. A look unmaps all that was in use, and the guest faults it in again.
constexpr int kLookPart = 10;
// A guest that uses all it has is not looked at for so long: looking would cost it faults and find
// nothing.
constexpr std::chrono::seconds kTakeAny{1};
// Of the ceiling, but no less and no more than: what is kept free, so that faults seldom wait. The
// larger is what a guest fills at 300 MiB/s until the thread has woken and looked.
constexpr std::uint64_t kReservePart = 32;
constexpr Bytes kLeastReserve = Bytes::mib(2);
constexpr Bytes kMostReserve = Bytes::mib(64);
// A guest grows that took so much within so long (a step or some): 2.5 MiB a second and more.
constexpr Bytes kGrowth = Bytes::mib(1);
constexpr std::chrono::milliseconds kGrows{400};
// Attempts without a page gone before the ceiling is opened as if the store were full.
constexpr unsigned kMostFruitless = 50;

std::chrono::nanoseconds processor_time() {
  timespec used{};
  (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

}  // namespace

std::string_view to_string(PagerService::State state) {
  switch (state) {
    case PagerService::State::idle:
      return "idle";
    case PagerService::State::looking:
      return "looking for cold pages";
    case PagerService::State::paging_out:
      return "paging out";
    case PagerService::State::giving_way:
      return "giving way to faults";
    case PagerService::State::paging_in:
      return "paging in";
    case PagerService::State::stopped:
      return "stopped";
    case PagerService::State::detached:
      return "detached";
  }
  return "unknown";
}

PagerService::PagerService(Pager& pager, AccessTracker tracker, std::shared_ptr<WriteBudget> budget,
                           Options options)
    : pager_(pager),
      tracker_(std::move(tracker)),
      budget_(std::move(budget)),
      options_(options),
      writer_(pager),
      cold_(pager),
      hands_(cold_.pieces(), RangeLocks::kPiece.whole_pages()) {
  thread_ = std::thread([this] { run(); });
}

PagerService::~PagerService() {
  {
    const std::lock_guard guard(mutex_);
    quit_ = true;
    interrupt_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void PagerService::set_goal(Bytes footprint) {
  const std::lock_guard guard(mutex_);
  goal_ = footprint;
  interrupt_ = interrupt_ || limit_.has_value();
  limit_.reset();
  wake_.notify_all();
}

void PagerService::set_ceiling(std::optional<Bytes> most) {
  const std::lock_guard guard(mutex_);
  if (quit_) {
    return;  // everything comes back
  }
  if (!most || (ceiling_ && *most > *ceiling_)) {
    interrupt_ = true;  // less has to go than what is under way
  }
  ceiling_ = most;
  enforce_ceiling(state_);
  wake_.notify_all();
}

Bytes PagerService::reserve_of(Bytes ceiling) {
  return std::clamp(Bytes(ceiling.count() / kReservePart), kLeastReserve, kMostReserve);
}

// What is brought back does not pass the fault path, where the ceiling is kept: it stays a reserve
// and a piece below it, so that page-out and page-in do not chase each other.
bool PagerService::has_room(const std::optional<Bytes>& ceiling) const {
  return !ceiling || footprint() + RangeLocks::kPiece + reserve_of(*ceiling) <= *ceiling;
}

// With the mutex held. Where nothing can be paged out the guest goes on, above its ceiling.
void PagerService::enforce_ceiling(State state) {
  const bool open = state == State::stopped || state == State::detached;
  pager_.ram().fill_limit().set(open ? std::nullopt : ceiling_);
}

void PagerService::clear_goal() {
  const std::lock_guard guard(mutex_);
  goal_.reset();
  limit_.reset();
  interrupt_ = true;
  wake_.notify_all();
}

void PagerService::set_limit(Bytes paged) {
  const std::lock_guard guard(mutex_);
  goal_.reset();
  limit_ = paged;
  interrupt_ = true;
  wake_.notify_all();
}

Pager::Progress PagerService::detach(const std::function<bool(const Pager::Progress&)>& progress) {
  {
    const std::lock_guard guard(mutex_);
    quit_ = true;
    interrupt_ = true;
    ceiling_.reset();  // bringing everything back needs room
    enforce_ceiling(State::detached);
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
  const Pager::Progress result = pager_.page_in_all(progress);
  const std::lock_guard guard(mutex_);
  state_ = State::detached;
  enforce_ceiling(state_);
  return result;
}

PagerService::Status PagerService::status() const {
  Status status;
  status.footprint = footprint();
  status.held_faults = pager_.ram().fill_limit().held();
  status.pager = pager_.stats();
  status.method = tracker_.method();
  const std::lock_guard guard(mutex_);
  status.state = state_;
  status.stop_reason = stop_reason_;
  status.goal = goal_.value_or(Bytes());
  status.ceiling = ceiling_;
  return status;
}

Bytes PagerService::footprint() const { return pager_.ram().fill_limit().footprint(); }

bool PagerService::faults_wait() const {
  for (const Userfaultfd& shard : pager_.ram().shards()) {
    pollfd polled{shard.fd(), POLLIN, 0};
    if (::poll(&polled, 1, 0) > 0 && (polled.revents & POLLIN) != 0) {
      return true;
    }
  }
  return false;
}

void PagerService::run() {
  ::pthread_setname_np(::pthread_self(), "fb-pager");
  set_thread_niceness(kNice);
  std::unique_lock lock(mutex_);
  while (!quit_) {
    try {
      step(lock);
    } catch (const std::bad_alloc&) {
      // Its end would be the keeper's, with all that is paged out. The next step tries again.
      if (!lock.owns_lock()) {
        lock.lock();
      }
    }
    if (!quit_) {
      const bool is_close = ceiling_ && footprint() + kClose >= *ceiling_;
      wake_.wait_for(lock, is_close ? kCeilingTick : kTick);
    }
  }
  lock.unlock();
  (void)writer_.flush();  // nothing is, but for a step that ran out of memory
}

void PagerService::step(std::unique_lock<std::mutex>& lock) {
  interrupt_ = false;
  std::optional<Bytes> goal = goal_;
  const std::optional<Bytes> ceiling = ceiling_;
  const std::optional<Bytes> limit = limit_;
  State state = state_;
  const auto now = Clock::now();
  lock.unlock();
  if (budget_) {
    budget_->advance(WriteBudget::now());
  }
  if (now >= next_upkeep_) {
    pager_.store().maintain(pager_);
    next_upkeep_ = now + std::chrono::seconds(1);
  }
  const Bytes taken = footprint();
  bool faults_are_held = false;
  const bool is_asked = goal.has_value();
  const bool grows = look_for_growth(taken, now);
  if (ceiling) {
    const Bytes below = *ceiling - reserve_of(*ceiling);
    goal = goal ? std::min(*goal, below) : below;
    faults_are_held = pager_.ram().fill_limit().take_waiting();
  }
  if (limit && Bytes::pages(pager_.stats().paged_pages) > *limit && has_room(ceiling)) {
    state = page_in(*limit);
  } else if (!goal || taken <= *goal) {
    state = State::idle;
  } else if (state == State::stopped && now < retry_at_) {
    // left alone for a while
  } else if (ceiling && (faults_are_held || taken > *ceiling + kGrowth ||
                         (grows && taken > *ceiling - Bytes(reserve_of(*ceiling).count() / 2)))) {
    state = make_room((taken - *goal).whole_pages(), Pace::hurry);
  } else if (!is_asked) {
    // At its ceiling, and content, or on its way there.
    state = grows ? make_room((taken - *goal).whole_pages(), Pace::calm) : State::idle;
  } else if (now >= next_look_) {
    if (const std::optional<State> unseen = look()) {
      state = *unseen;
    } else {
      // More than half of what went out since the last look is back: this set is in use.
      const PagerStats stats = pager_.stats();
      const std::uint64_t faults = stats.faults - faults_before_;
      const std::uint64_t out = stats.paged_out - out_before_;
      faults_before_ = stats.faults;
      out_before_ = stats.paged_out;
      state = faults > PageWriter::kBatch && faults * 2 > out ? State::giving_way
                                                              : page_out(taken - *goal);
    }
  } else if (state == State::idle) {
    state = State::looking;
  }
  lock.lock();
  if (state != state_) {
    state_ = state;
    enforce_ceiling(state);
  }
}

// Whether the guest has taken memory within the last moments. One that has not needs no reserve,
// and is not looked at for one: a look at memory that the guest has written costs some 16 us a page
// (process_madvise(MADV_PAGEOUT) flushes the TLBs of all CPUs once for each dirty page,
// shrink_folio_list() in mm/vmscan.c, Linux 6.18).
bool PagerService::look_for_growth(Bytes taken, Clock::time_point now) {
  if (taken > lowest_ + kGrowth) {
    grew_at_ = now;
    lowest_ = taken;
  }
  lowest_ = std::min(lowest_, taken);
  return now - grew_at_ < kGrows;
}

// Nothing, or the state that a look without result leads to.
std::optional<PagerService::State> PagerService::look() {
  const auto began = Clock::now();
  const auto used_before = processor_time();
  const AccessTracker::Look seen = tracker_.look();
  const int error = seen.error;
  looked_pages_.fetch_add(seen.accessed, std::memory_order_relaxed);
  const auto pause = (processor_time() - used_before) * kLookPart;
  next_look_ = std::max<Clock::time_point>(began + options_.look_interval, Clock::now() + pause);
  return error == 0 ? std::nullopt : std::optional(blind(error));
}

// The state that a look which failed with this errno leads to.
PagerService::State PagerService::blind(int error) {
  if (error == ESRCH) {
    return State::detached;  // the VM is gone
  }
  stop_for(StoreStatus::unseen);
  return State::stopped;
}

// While at work; what a step comes to is entered by step().
void PagerService::show(State state) {
  const std::lock_guard guard(mutex_);
  state_ = state;
}

// Faults wait, or soon will (hurry), or may soon (calm).
PagerService::State PagerService::make_room(std::uint64_t wanted, Pace pace) {
  const PagerStats before = pager_.stats();
  const bool is_any = Clock::now() < take_any_until_;
  set_thread_niceness(pace == Pace::hurry ? kNiceInAHurry : kNice);
  Want want{wanted};
  State state = is_any ? take_any(want) : turn_clock(want, pace);
  end_batch(want);
  state = want.stopped ? State::stopped : state;
  set_thread_niceness(kNice);
  const PagerStats after = pager_.stats();
  const bool made_room = after.paged_out > before.paged_out || after.zero_pages > before.zero_pages;
  const bool failed = !made_room && (is_any || after.rejected > before.rejected ||
                                     after.write_races > before.write_races);
  fruitless_ = made_room ? 0 : fruitless_ + (failed ? 1 : 0);
  see_what_came_back();
  if (state == State::looking && fruitless_ >= kMostFruitless) {
    fruitless_ = 0;
    stop_for(StoreStatus::rejected);
    return State::stopped;
  }
  return state;
}

void PagerService::see_what_came_back() {
  const PagerStats stats = pager_.stats();
  const std::uint64_t out = stats.paged_out - room_out_;
  if (out >= PageWriter::kBatch) {
    hands_.came_back(stats.faults - room_faults_, out);
    room_out_ = stats.paged_out;
    room_faults_ = stats.faults;
  }
}

// A clock with two hands (ClockHands). Ends where it has to wait, so that a new ceiling is heard.
PagerService::State PagerService::turn_clock(Want& want, Pace pace) {
  show(State::paging_out);
  while (goes_on(want)) {
    const auto now = Clock::now();
    const ClockHands::Move move = hands_.next(left(want), now);
    if (move == ClockHands::Move::wait && pace == Pace::hurry) {
      hands_.starved(now);
    }
    if (move == ClockHands::Move::wait ||
        (move == ClockHands::Move::look && pace == Pace::calm && now < next_calm_look_)) {
      break;
    }
    if (move == ClockHands::Move::look) {
      if (const int error = look_at_next(); error != 0) {
        return blind(error);
      }
      continue;
    }
    const ClockHands::Looked looked = hands_.take(now);
    const ColdPages::Piece& piece = cold_.at(looked.piece);
    if (const int error = tracker_.look_again_at(piece.object, piece.range()).error; error != 0) {
      return blind(error);
    }
    cold_.collect(piece, 1, batch_);
    hands_.took(batch_.pages.size());
    if (batch_.pages.empty()) {
      // In a hurry only: who has time does not take what is in use.
      if (hands_.all_in_use() && pace == Pace::hurry) {
        take_any_until_ = Clock::now() + kTakeAny;
        break;
      }
      continue;
    }
    const bool is_part = batch_.pages.size() > left(want);
    if (is_part) {
      batch_.pages.resize(left(want));
      hands_.put_back(looked);
      end_batch(want);
    }
    if (pace == Pace::calm) {
      yield_to_faults();
    }
    const std::uint64_t before = want.pages;
    write_batch(want);
    if (is_part) {
      end_batch(want);
      if (want.pages == before) {
        break;  // nothing of it can go now; it is the next one still
      }
    }
  }
  return State::looking;
}

// The first hand. 0, or errno.
int PagerService::look_at_next() {
  const auto used_before = processor_time();
  const std::uint64_t number = cold_.turn();
  const ColdPages::Piece& piece = cold_.at(number);
  const AccessTracker::Look look = tracker_.look_at(piece.object, piece.range());
  looked_pages_.fetch_add(look.accessed, std::memory_order_relaxed);
  const auto now = Clock::now();
  hands_.looked(number, now);
  next_calm_look_ = now + (processor_time() - used_before) * kLookPart;
  return look.error;
}

// Where everything is in use.
PagerService::State PagerService::take_any(Want& want) {
  show(State::paging_out);
  for (std::uint64_t i = 0; i < cold_.pieces() && goes_on(want); ++i) {
    cold_.collect(cold_.at(cold_.turn()), 0, batch_);
    if (batch_.pages.size() > left(want)) {
      batch_.pages.resize(left(want));
    }
    if (!batch_.pages.empty()) {
      write_batch(want);
    }
  }
  return State::looking;
}

PagerService::State PagerService::page_out(Bytes excess) {
  show(State::paging_out);
  Want want{(excess.count() + kPageSize - 1) / kPageSize};
  if (cold_.start(want.pages, options_.min_age) == 0) {
    return State::looking;
  }
  // Zero pages first: they cost no room and no compression, and come back for nothing.
  for (const bool zero_only : {true, false}) {
    cold_.rewind();
    while (goes_on(want)) {
      yield_to_faults();
      const std::uint64_t limit =
          zero_only ? PageWriter::kBatch : std::min<std::uint64_t>(PageWriter::kBatch, left(want));
      cold_.next(limit, batch_);
      if (batch_.pages.empty()) {
        break;
      }
      if (zero_only) {
        writer_.keep_zero(batch_.object, batch_.pages);
      }
      write_batch(want);
    }
  }
  end_batch(want);
  return want.stopped ? State::stopped : want.pages == 0 ? State::idle : State::looking;
}

PagerService::State PagerService::page_in(Bytes limit) {
  show(State::paging_in);
  while (!interrupt_) {
    const Bytes paged = Bytes::pages(pager_.stats().paged_pages);
    if (paged <= limit) {
      return State::idle;
    }
    const std::optional<Bytes> ceiling = [this] {
      const std::lock_guard guard(mutex_);
      return ceiling_;
    }();
    if (!has_room(ceiling)) {
      break;
    }
    yield_to_faults();
    // A piece at a time, so that a new order is heard; nothing at all means that the host has no
    // memory for it, and the next step tries again.
    if (pager_.page_in_some(
            std::min((paged - limit).whole_pages(), RangeLocks::kPiece.whole_pages())) == 0) {
      break;
    }
  }
  return State::paging_in;
}

void PagerService::yield_to_faults() {
  const auto since = Clock::now();
  while (faults_wait() && Clock::now() - since < kMaxYield) {
    std::this_thread::sleep_for(kYield);
  }
}

std::uint64_t PagerService::left(const Want& want) const {
  return want.pages - std::min<std::uint64_t>(want.pages, writer_.under_way());
}

bool PagerService::goes_on(Want& want) {
  if (left(want) == 0) {
    end_batch(want);
  }
  return want.pages > 0 && !want.stopped && !interrupt_;
}

void PagerService::write_batch(Want& want) {
  account(writer_.write(batch_.object, batch_.pages), want);
}

void PagerService::end_batch(Want& want) { account(writer_.flush(), want); }

void PagerService::account(const PageWriter::Outcome& outcome, Want& want) {
  want.pages -= std::min<std::uint64_t>(want.pages, outcome.stored + outcome.zero);
  if (outcome.huge_page) {
    pager_.events().post({PagerEvent::Kind::huge_page, StoreStatus::ok, outcome.huge_page->object,
                          outcome.huge_page->page});
    stop_for(StoreStatus::io_error);
    want.stopped = true;
  } else if (outcome.status != StoreStatus::ok) {
    pager_.store().maintain(pager_);  // spilling or compacting may make room
    stop_for(outcome.status);
    want.stopped = true;
  } else if (outcome.stored > 0 && !want.stopped) {
    const std::lock_guard guard(mutex_);
    if (stop_reason_ != StoreStatus::ok) {
      stop_reason_ = StoreStatus::ok;
      pager_.events().post({PagerEvent::Kind::resumed});
    }
  }
}

void PagerService::stop_for(StoreStatus why) {
  retry_at_ = Clock::now() + options_.retry;
  const std::lock_guard guard(mutex_);
  if (stop_reason_ != why) {  // once a reason, not once a retry
    stop_reason_ = why;
    pager_.events().post({PagerEvent::Kind::stopped, why});
  }
}

}  // namespace fileballoon
