#include "uffd/pager/pager_service.h"

#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fileballoon {
namespace {

// How often the thread looks after the store and its goal when nothing else wakes it.
constexpr std::chrono::milliseconds kTick{200};
// Pause between two looks whether faults still wait; about what one answer takes.
constexpr std::chrono::microseconds kYield{50};
// Paging out waits at most this long for faults at a time, so that it goes on at a trickle below a
// VM that faults without end; giving_way is what holds it back then.
constexpr std::chrono::milliseconds kMaxYield{20};

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
      cold_(pager) {
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
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
  const Pager::Progress result = pager_.page_in_all(progress);
  const std::lock_guard guard(mutex_);
  state_ = State::detached;
  return result;
}

PagerService::Status PagerService::status() const {
  Status status;
  status.footprint = footprint();
  status.pager = pager_.stats();
  status.method = tracker_.method();
  const std::lock_guard guard(mutex_);
  status.state = state_;
  status.stop_reason = stop_reason_;
  status.goal = goal_.value_or(Bytes());
  return status;
}

Bytes PagerService::footprint() const {
  Bytes sum;
  for (const RamObject& object : pager_.ram().objects()) {
    struct stat status {};
    if (::fstat(object.fd, &status) == 0) {
      sum += Bytes(static_cast<std::uint64_t>(status.st_blocks) * 512);
    }
  }
  return sum;
}

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
  // Compressing must not take the CPU from who answers faults or runs the guest.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 10);
  std::unique_lock lock(mutex_);
  while (!quit_) {
    step(lock);
    if (!quit_) {
      wake_.wait_for(lock, kTick);
    }
  }
}

void PagerService::step(std::unique_lock<std::mutex>& lock) {
  interrupt_ = false;
  const std::optional<Bytes> goal = goal_;
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
  if (limit && Bytes::pages(pager_.stats().paged_pages) > *limit) {
    state = page_in(*limit);
  } else if (!goal || taken <= *goal) {
    state = State::idle;
  } else if (state == State::stopped && now < retry_at_) {
    // left alone for a while
  } else if (now >= next_look_) {
    next_look_ = now + options_.look_interval;
    if (!tracker_.look().complete) {
      state = State::detached;  // the VM is gone
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
  state_ = state;
}

PagerService::State PagerService::page_out(Bytes excess) {
  {
    const std::lock_guard guard(mutex_);
    state_ = State::paging_out;
  }
  std::uint64_t wanted = (excess.count() + kPageSize - 1) / kPageSize;
  if (cold_.start(wanted, options_.min_age) == 0) {
    return State::looking;
  }
  // Zero pages first: they cost no room and no compression, and come back for nothing.
  for (const bool zero_only : {true, false}) {
    cold_.rewind();
    while (wanted > 0 && !interrupt_) {
      yield_to_faults();
      const std::uint64_t limit =
          zero_only ? PageWriter::kBatch : std::min<std::uint64_t>(PageWriter::kBatch, wanted);
      cold_.next(limit, batch_);
      if (batch_.pages.empty()) {
        break;
      }
      if (zero_only) {
        writer_.keep_zero(batch_.object, batch_.pages);
      }
      if (!write_batch(wanted)) {
        return State::stopped;
      }
    }
  }
  return wanted == 0 ? State::idle : State::looking;
}

PagerService::State PagerService::page_in(Bytes limit) {
  {
    const std::lock_guard guard(mutex_);
    state_ = State::paging_in;
  }
  while (!interrupt_) {
    const Bytes paged = Bytes::pages(pager_.stats().paged_pages);
    if (paged <= limit) {
      return State::idle;
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

bool PagerService::write_batch(std::uint64_t& wanted) {
  const PageWriter::Outcome outcome = writer_.write(batch_.object, batch_.pages);
  wanted -= std::min<std::uint64_t>(wanted, outcome.stored + outcome.zero);
  if (outcome.huge_page) {
    pager_.events().post(
        {PagerEvent::Kind::huge_page, StoreStatus::ok, batch_.object, batch_.pages.front()});
    stop_for(StoreStatus::io_error);
    return false;
  }
  if (outcome.status != StoreStatus::ok) {
    pager_.store().maintain(pager_);  // spilling or compacting may make room
    stop_for(outcome.status);
    return false;
  }
  if (outcome.stored > 0) {
    const std::lock_guard guard(mutex_);
    if (stop_reason_ != StoreStatus::ok) {
      stop_reason_ = StoreStatus::ok;
      pager_.events().post({PagerEvent::Kind::resumed});
    }
  }
  return true;
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
