#include "uffd/fault_engine.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <system_error>

#include "uffd/crowded_cpus.h"
#include "uffd/prompt_thread.h"
#include "uffd/range_filler.h"
#include "uffd/spin_length.h"

namespace fileballoon {
namespace {

using Clock = std::chrono::steady_clock;

// Messages taken in one read. More than the vCPUs of most guests, and small enough for the stack.
constexpr std::size_t kBatch = 64;
// Faults put aside; when full, no further messages are read until some are answered.
constexpr std::size_t kDeferred = 1024;
// A deferred fault is tried again after this at the latest.
constexpr std::chrono::microseconds kRetry{20};
// After ENOMEM: memory does not come back in microseconds, and retrying costs the host CPU time.
constexpr std::chrono::microseconds kNoMemoryRetry{2000};
// While the RAM takes all it may (page-out makes room for hundreds of pages in that time), or what
// is waited for is lost.
constexpr std::chrono::microseconds kHeldRetry{500};
// Giving way takes a microsecond or two while the CPU is free; longer than so somebody has run
// there meanwhile, longer than so somebody who will not stop soon.
constexpr std::chrono::microseconds kRan{3};
constexpr std::chrono::microseconds kCrowded{500};
// For so long a message is left to the reader on whose CPU its thread is believed to be: until that
// reader has the CPU and has read. After so many times for nothing in a row none is, for so long.
constexpr std::chrono::microseconds kHold{8};
constexpr unsigned kMostInVain = 4;
constexpr std::chrono::milliseconds kHoldsNot{10};
// What a flash disk takes at most; for a slower one nobody stays awake.
constexpr std::chrono::microseconds kLongestAnswer{300};
// Refaulted ranges that wait for the control plane: at 1 MiB each 4 GiB of deflation.
constexpr std::size_t kRing = 4096;

unsigned usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<unsigned>(CPU_COUNT(&set)) : 1;
}

struct Fault {
  std::uint64_t address = 0;
  std::uint64_t flags = 0;
  std::uint32_t shard = 0;
  Clock::time_point read_at{};
};

// Counts its owner among those at work.
class Answering {
 public:
  explicit Answering(std::atomic<unsigned>& count) : count_(count) {
    count_.fetch_add(1, std::memory_order_relaxed);
  }
  Answering(const Answering&) = delete;
  Answering& operator=(const Answering&) = delete;
  ~Answering() { count_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  std::atomic<unsigned>& count_;
};

}  // namespace

const char* to_string(Resolver resolver) {
  switch (resolver) {
    case Resolver::zeropage:
      return "zeropage";
    case Resolver::populate:
      return "populate";
    case Resolver::fallocate:
      return "fallocate";
    case Resolver::continue_:
      return "continue";
  }
  return "?";
}

// What goes with one userfaultfd, for the reader that has it: one at a time, so that a fault is
// answered before an event that follows it is read, and streams are seen whole.
struct FaultEngine::Shard {
  explicit Shard(RefaultWindow::Options options) : window(options) {}

  std::mutex busy;
  RefaultWindow window;
  std::array<Fault, kDeferred> deferred{};
  std::size_t deferred_count = 0;
  std::atomic<bool> has_deferred{false};
  // Ranges filled and woken since the messages at hand were read: their faults are answered.
  std::array<AddressRange, kBatch> answered{};
  std::size_t answered_count = 0;
  // Of the window, for stats().
  std::atomic<std::uint64_t> sequential{0}, window_used{0}, window_unused{0};
};

// One thread and what it alone writes. Counters are atomics with one writer, read by stats().
class FaultEngine::Reader {
 public:
  Reader(FaultEngine& engine, unsigned number, const std::vector<std::uint32_t>& own)
      : engine_(engine),
        number_(number),
        shards_(own),
        own_(own.size()),
        filler_(engine.ram_, engine.options_.resolver, engine.source_),
        spin_(usable_cpus() > 1 ? engine.options_.max_spin : std::chrono::microseconds(0)) {
    for (std::uint32_t shard = 0; shard < engine.ram_.shards().size(); ++shard) {
      if (std::find(own.begin(), own.end(), shard) == own.end()) {
        shards_.push_back(shard);
      }
    }
    polled_.push_back({engine.stop_.get(), POLLIN, 0});
    // All shards, not only its own: readers wake and spin together (see run()).
    for (const std::uint32_t shard : shards_) {
      polled_.push_back({engine.ram_.shards()[shard].fd(), POLLIN, 0});
    }
    thread_ = std::thread([this] { run(); });
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { thread_.join(); }

  void request_stop() { stop_.store(true, std::memory_order_relaxed); }

  [[nodiscard]] bool serving() const { return serving_.load(std::memory_order_relaxed); }

  struct Counters {
    std::atomic<std::uint64_t> missing{0}, minor{0}, write_protect{0}, shared{0}, foreign{0},
        deferred{0}, removes{0}, reads{0}, sleeps{0}, refaulted{0}, deflated{0}, dropped{0};
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] const LatencyHistogram& latency() const { return latency_; }
  [[nodiscard]] const RangeFiller::Counters& filler_counters() const { return filler_.counters(); }

  template <class Visit>
  bool drain(Visit&& visit) {
    const std::uint64_t written = ring_written_.load(std::memory_order_acquire);
    while (ring_read_.load(std::memory_order_relaxed) < written) {
      const std::uint64_t at = ring_read_.load(std::memory_order_relaxed);
      const Refault refault = ring_[at % kRing];
      ring_read_.store(at + 1, std::memory_order_release);
      visit(refault.object,
            HostRange{HostOffset(refault.first * kPageSize), Bytes::pages(refault.count)});
    }
    return counters_.dropped.exchange(0, std::memory_order_relaxed) == 0;
  }

 private:
  struct Refault {
    std::uint32_t object = 0;
    std::uint32_t count = 0;
    std::uint64_t first = 0;
  };
  enum class Answer { done, later, held, lost, no_memory };

  static void bump(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) {
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }

  void run();
  bool serve_all();
  bool serve(std::uint32_t number);
  void take(std::uint32_t number, const uffd_msg& message, Clock::time_point now);
  void answer_or_defer(Shard& shard, const Fault& fault);
  bool retry_deferred();
  void retry_deferred(Shard& shard);
  void note_latency(const Fault& fault);
  void note_trouble(Answer result);
  [[nodiscard]] bool spins(Clock::time_point now, Clock::time_point active) const;
  void give_way(Clock::time_point now);
  [[nodiscard]] bool holds_back();
  [[nodiscard]] bool has_messages();
  void sleep(bool for_own);
  [[nodiscard]] Answer answer(Shard& shard, const Fault& fault);
  [[nodiscard]] Answer answer_missing(Shard& shard, const WatchedRam::Region& region,
                                      const Fault& fault);
  [[nodiscard]] Answer answer_write_protect(const WatchedRam::Region& region,
                                            std::uint64_t address);
  void removed(std::uint64_t start, std::uint64_t end);
  void report(std::uint32_t object, std::uint64_t first, std::uint32_t count);

  FaultEngine& engine_;
  unsigned number_;
  std::vector<std::uint32_t> shards_;  // all; first its own, looked at whenever it looks
  std::size_t own_;                    // how many are
  RangeFiller filler_;
  SpinLength spin_;
  std::vector<pollfd> polled_;  // the end, then as in shards_
  CrowdedCpus crowded_{kCrowded};
  bool is_fresh_ = true;  // somebody may have run on this CPU until a moment ago
  unsigned in_vain_ = 0;
  Clock::time_point holds_not_until_{};
  bool out_of_memory_ = false;
  bool held_ = false;
  bool slept_ = false;            // for what it answered last
  Clock::time_point woken_at_{};  // of the last answer, where its range was not full then
  Counters counters_;
  LatencyHistogram latency_;
  std::array<Refault, kRing> ring_{};
  std::atomic<std::uint64_t> ring_written_{0};
  std::atomic<std::uint64_t> ring_read_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> serving_{true};
  std::thread thread_;  // last: starts when all else is there
};

void FaultEngine::Reader::run() {
  ::pthread_setname_np(::pthread_self(), "fb-faults");
  ask_for_prompt_wakeups();
  auto active = Clock::now();
  while (!stop_.load(std::memory_order_relaxed) && serving()) {
    if (serve_all()) {
      active = Clock::now();
      engine_.last_active_.store(active.time_since_epoch(), std::memory_order_relaxed);
      // The answered thread may have run on this CPU since: it takes the CPU as it wakes.
      is_fresh_ = true;
      if (!engine_.waits_asleep_.load(std::memory_order_relaxed)) {
        continue;
      }
      // Going to sleep gives the answered thread the CPU at once, and says if there is more.
    }
    if (engine_.has_deferred()) {
      if (retry_deferred()) {
        const auto pause = out_of_memory_ ? kNoMemoryRetry : held_ ? kHeldRetry : kRetry;
        const timespec wait{0, std::chrono::nanoseconds(pause).count()};
        (void)::ppoll(polled_.data(), out_of_memory_ ? 1 : polled_.size(), &wait, nullptr);
      }
      active = Clock::now();
      continue;
    }
    const auto now = Clock::now();
    if (spins(now, active)) {
      give_way(now);
      continue;
    }
    sleep(crowded_.at(now) || engine_.waits_asleep_.load(std::memory_order_relaxed));
    is_fresh_ = true;
    active = Clock::now();
    spin_.slept(now, active,
                Clock::time_point(engine_.last_active_.load(std::memory_order_relaxed)));
  }
}

// Whether to look again and not to sleep. Faults of any shard keep all readers looking: one that
// gives way on the CPU where the answered thread belongs picks that thread up at once, which
// otherwise takes an interrupt to that CPU (5 us instead of 21 for a single refault in a virtual
// machine).
bool FaultEngine::Reader::spins(Clock::time_point now, Clock::time_point active) const {
  if (spin_.length().count() == 0 || crowded_.at(now) ||
      engine_.waits_asleep_.load(std::memory_order_relaxed)) {
    return false;
  }
  const Clock::time_point any(engine_.last_active_.load(std::memory_order_relaxed));
  const auto idle = now - std::max(active, any);
  if (engine_.answering_.load(std::memory_order_relaxed) > 0) {
    // Another reader answers, which with a disk takes longer than a spin: the answered thread's CPU
    // is kept awake for it.
    return idle < kLongestAnswer;
  }
  return idle < spin_.length();
}

// Also lets the answered thread have this very CPU (p99 9 us, 107 without), where no other reader
// is.
void FaultEngine::Reader::give_way(Clock::time_point now) {
  ::sched_yield();
  const auto after = Clock::now();
  crowded_.gave_way(after - now, after);
  is_fresh_ = after - now > kRan;
  engine_.spread_.look(number_, after);
}

// A thread that runs on this CPU until it faults is answered and woken here best: no CPU has to be
// interrupted for it. So a reader to which its CPU has just been given back takes messages of all
// shards; one that looks all the time, which is quicker to see them, leaves the first moments to
// the one that did so with the last fault.
bool FaultEngine::Reader::serve_all() {
  if (!is_fresh_ && holds_back()) {
    return false;
  }
  bool any = false;
  slept_ = false;
  const bool takes_all = is_fresh_ && !engine_.waits_asleep_.load(std::memory_order_relaxed);
  const std::size_t looks = takes_all ? shards_.size() : own_;
  for (std::size_t i = 0; i < looks && !slept_; ++i) {  // then poll(2) looks, after the answered
    any = serve(shards_[i]) || any;
  }
  if (any) {
    engine_.at_hand_.store(is_fresh_ ? this : nullptr, std::memory_order_relaxed);
    engine_.waits_asleep_.store(slept_, std::memory_order_relaxed);
  }
  return any;
}

// Waits for a moment where a message is another's. False: none is, any more.
bool FaultEngine::Reader::holds_back() {
  const Reader* at_hand = engine_.at_hand_.load(std::memory_order_relaxed);
  auto now = Clock::now();
  if (at_hand == nullptr || at_hand == this || now < holds_not_until_) {
    return false;
  }
  if (!has_messages()) {
    return true;  // and nothing to take
  }
  const auto seen = now;
  while (now - seen < kHold) {
    give_way(now);
    if (is_fresh_) {
      return false;  // not idle, and perhaps the one where the thread was
    }
    if (!has_messages()) {
      in_vain_ = 0;
      return true;
    }
    now = Clock::now();
  }
  if (++in_vain_ >= kMostInVain) {
    in_vain_ = 0;
    holds_not_until_ = now + kHoldsNot;
  }
  return false;
}

// Of its own shards.
bool FaultEngine::Reader::has_messages() { return ::poll(polled_.data() + 1, own_, 0) != 0; }

// `for_own`: until its own shards have something. A message that waits for another reader would
// wake this one again and again, which is how readers keep awake together, and no use where CPUs
// are scarce or where who answers sleeps for its disk.
void FaultEngine::Reader::sleep(bool for_own) {
  bump(counters_.sleeps);
  engine_.spread_.rest(number_);
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    if (i < own_ && engine_.waits_asleep_.load(std::memory_order_relaxed)) {
      // Where another reader has it still, asleep, poll(2) would tell of messages that cannot be
      // had, again and again.
      const std::lock_guard until_it_is_free(engine_.shards_[shards_[i]]->busy);
    }
    const bool looks = i < own_ || !for_own;
    polled_[i + 1].fd = looks ? engine_.ram_.shards()[shards_[i]].fd() : -1;  // poll(2) skips it
  }
  if (::poll(polled_.data(), polled_.size(), -1) < 0 && errno != EINTR) {
    serving_.store(false, std::memory_order_relaxed);
  }
  for (std::size_t i = 1; i < polled_.size(); ++i) {
    // POLLERR: the descriptor blocks or was never negotiated; POLLNVAL: closed.
    if ((polled_[i].revents & (POLLERR | POLLNVAL)) != 0) {
      serving_.store(false, std::memory_order_relaxed);
    }
  }
}

bool FaultEngine::Reader::serve(std::uint32_t number) {
  Shard& shard = *engine_.shards_[number];
  const std::unique_lock lock(shard.busy, std::try_to_lock);
  if (!lock.owns_lock() || shard.deferred_count + kBatch > kDeferred) {
    return false;
  }
  std::array<uffd_msg, kBatch> messages;
  std::size_t count = 0;
  switch (engine_.ram_.shards()[number].read(messages, count)) {
    case UffdRead::empty:
      return false;
    case UffdRead::closed:
      serving_.store(false, std::memory_order_relaxed);
      return false;
    case UffdRead::messages:
      break;
  }
  bump(counters_.reads);
  const auto now = Clock::now();
  const Answering answering(engine_.answering_);
  shard.answered_count = 0;
  // Events first: the kernel hands out faults before events, but a fault in a range that a REMOVE
  // in the same batch names must be answered as removed.
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) {
      take(number, messages[i], now);
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
      take(number, messages[i], now);
    }
  }
  return true;
}

void FaultEngine::Reader::take(std::uint32_t number, const uffd_msg& message,
                               Clock::time_point now) {
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      answer_or_defer(*engine_.shards_[number], {message.arg.pagefault.address & ~(kPageSize - 1),
                                                 message.arg.pagefault.flags, number, now});
      break;
    case UFFD_EVENT_REMOVE:
      bump(counters_.removes);
      removed(message.arg.remove.start, message.arg.remove.end);
      break;
    case UFFD_EVENT_UNMAP:
      for (const auto& region : engine_.ram_.regions()) {
        if (region.where.start < message.arg.remove.end &&
            message.arg.remove.start < region.where.end()) {
          engine_.ram_.mark_lost(region.object);
        }
      }
      break;
    case UFFD_EVENT_REMAP:
      if (const auto* region = engine_.ram_.find(message.arg.remap.from)) {
        engine_.ram_.mark_lost(region->object);
      }
      break;
    case UFFD_EVENT_FORK:
      // Never asked for; the child's descriptor would leak into this process otherwise.
      UniqueFd(static_cast<int>(message.arg.fork.ufd));
      break;
    default:
      break;
  }
}

void FaultEngine::Reader::answer_or_defer(Shard& shard, const Fault& fault) {
  const Answer result = answer(shard, fault);
  if (result == Answer::done) {
    note_latency(fault);
    return;
  }
  note_trouble(result);
  if (result == Answer::held) {
    engine_.ram_.fill_limit().count_held();
  }
  bump(counters_.deferred);
  shard.deferred[shard.deferred_count++] = fault;  // there is room: see serve()
  shard.has_deferred.store(true, std::memory_order_relaxed);
}

void FaultEngine::Reader::note_trouble(Answer result) {
  out_of_memory_ = out_of_memory_ || result == Answer::no_memory;
  held_ = held_ || result == Answer::held || result == Answer::lost;
}

void FaultEngine::Reader::note_latency(const Fault& fault) {
  const bool early = woken_at_ != Clock::time_point{};
  latency_.add((early ? woken_at_ : Clock::now()) - fault.read_at);
}

// Of all shards: who put a fault aside has perhaps gone to sleep. Whether any are left.
bool FaultEngine::Reader::retry_deferred() {
  out_of_memory_ = held_ = false;
  for (const auto& shard : engine_.shards_) {
    const std::unique_lock lock(shard->busy, std::try_to_lock);
    if (lock.owns_lock()) {
      retry_deferred(*shard);
    }
  }
  return engine_.has_deferred();
}

void FaultEngine::Reader::retry_deferred(Shard& shard) {
  shard.answered_count = 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < shard.deferred_count; ++i) {
    const Answer result = answer(shard, shard.deferred[i]);
    if (result == Answer::done) {
      note_latency(shard.deferred[i]);
    } else {
      note_trouble(result);
      shard.deferred[kept++] = shard.deferred[i];
    }
  }
  shard.deferred_count = kept;
  shard.has_deferred.store(kept > 0, std::memory_order_relaxed);
}

FaultEngine::Reader::Answer FaultEngine::Reader::answer(Shard& shard, const Fault& fault) {
  woken_at_ = {};
  WatchedRam& ram = engine_.ram_;
  const WatchedRam::Region* region = ram.find(fault.address);
  if (region == nullptr) {
    // Watched by this descriptor and not by our book: let the thread try again.
    (void)ram.shards()[fault.shard].wake({fault.address, Bytes(kPageSize)});
    return Answer::done;
  }
  if ((fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
    return answer_write_protect(*region, fault.address);
  }
  return answer_missing(shard, *region, fault);
}

FaultEngine::Reader::Answer FaultEngine::Reader::answer_write_protect(
    const WatchedRam::Region& region, std::uint64_t address) {
  WatchedRam& ram = engine_.ram_;
  const std::unique_lock lock(
      ram.locks().of(region.object, HostOffset(region.page_of(address) * kPageSize)),
      std::try_to_lock);
  if (!lock.owns_lock()) {
    return Answer::later;
  }
  // Before the writer is woken, so that it finds the book right.
  if (ram.objects()[region.object].lazy) {
    (void)ram.frames(region.object)
        .change(region.page_of(address), FrameState::absent, FrameState::backed);
  }
  // The pager was writing this page out: it finds the page changed and leaves it.
  (void)ram.frames(region.object)
      .change(region.page_of(address), FrameState::guarded, FrameState::backed);
  // Nobody is discarding this page now. Where it has been punched meanwhile, the retry arrives as
  // MISSING (kernel mode: is answered by the kernel).
  const UffdOutcome outcome =
      ram.shard_of(region).unprotect({address, Bytes(kPageSize)}, Wake::yes);
  if (outcome.status == UffdStatus::again) {
    return Answer::later;
  }
  if (outcome.status != UffdStatus::done) {
    ram.mark_lost(region.object);
    (void)ram.shard_of(region).wake({address, Bytes(kPageSize)});
  }
  bump(counters_.write_protect);
  return Answer::done;
}

FaultEngine::Reader::Answer FaultEngine::Reader::answer_missing(Shard& shard,
                                                                const WatchedRam::Region& region,
                                                                const Fault& fault) {
  const std::uint64_t address = fault.address;
  const bool minor = (fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0;
  for (std::size_t i = 0; i < shard.answered_count; ++i) {
    if (shard.answered[i].contains(address)) {
      bump(counters_.shared);
      return Answer::done;  // it was woken after its message had been read
    }
  }
  WatchedRam& ram = engine_.ram_;
  const std::uint64_t page = region.page_of(address);
  const std::unique_lock lock(ram.locks().of(region.object, HostOffset(page * kPageSize)),
                              std::try_to_lock);
  if (!lock.owns_lock()) {
    return Answer::later;
  }
  FrameMap& frames = ram.frames(region.object);
  const FrameState state = frames.state(page);
  std::uint64_t first = page;
  std::uint32_t count = 1;
  if (minor || state == FrameState::backed || state == FrameState::guarded) {
    if (!minor) {
      bump(counters_.foreign);
    }
  } else {
    const RefaultWindow::Answer wanted = shard.window.next(region.object, page);
    // Clipped to what is in the same state around the page, the region, and the lock's piece.
    const std::uint64_t piece = RangeLocks::kPiece.whole_pages();
    const std::uint64_t low =
        std::max({wanted.first, page / piece * piece, region.offset.bytes() / kPageSize});
    const std::uint64_t high = std::min({wanted.first + wanted.count, (page / piece + 1) * piece,
                                         region.page_of(region.where.end() - kPageSize) + 1});
    while (first > low && frames.state(first - 1) == state) {
      --first;
    }
    count = static_cast<std::uint32_t>(page - first + frames.run(page, high - page, state));
  }
  if (!minor) {
    const std::uint32_t room = ram.fill_limit().admit(count);
    if (room == 0 && Clock::now() - fault.read_at < FillLimit::kLongestHold) {
      return Answer::held;
    }
    if (room < count) {  // the page that is waited for, and what there is room for behind it
      count = std::min(std::max(room, 1U), static_cast<std::uint32_t>(first + count - page));
      first = page;
    }
  }
  const RangeFiller::Request request{&region, first, count, page, state, minor};
  const RangeFiller::Outcome outcome = filler_.fill(request);
  woken_at_ = outcome.woken_at;
  slept_ = slept_ || outcome.slept;
  switch (outcome.status) {
    case RangeFiller::Status::later:
      return Answer::later;
    case RangeFiller::Status::lost:
      return Answer::lost;
    case RangeFiller::Status::no_memory:
      return Answer::no_memory;
    case RangeFiller::Status::gone:
      ram.mark_lost(region.object);
      return Answer::done;
    case RangeFiller::Status::filled:
      break;
  }
  const AddressRange filled{region.address_of(outcome.first), Bytes::pages(outcome.count)};
  if (shard.answered_count < shard.answered.size()) {
    shard.answered[shard.answered_count++] = filled;
  }
  bump(minor ? counters_.minor : counters_.missing);
  if (outcome.count == 0) {
    return Answer::done;  // poisoned: its content stays lost
  }
  // Punched by someone else while the pager was writing it out: it is no longer guarded.
  (void)frames.change(page, FrameState::guarded, FrameState::backed);
  if (state == FrameState::absent || state == FrameState::paged) {
    frames.set(outcome.first, outcome.count, FrameState::backed);
    shard.window.filled(outcome.first, outcome.count);
    const RefaultWindow::Counters& seen = shard.window.counters();
    shard.sequential.store(seen.sequential, std::memory_order_relaxed);
    shard.window_used.store(seen.used, std::memory_order_relaxed);
    shard.window_unused.store(seen.unused, std::memory_order_relaxed);
    if (state == FrameState::absent) {
      bump(counters_.deflated, outcome.count);
    }
    report(region.object, outcome.first, outcome.count);
  }
  return Answer::done;
}

void FaultEngine::Reader::removed(std::uint64_t start, std::uint64_t end) {
  WatchedRam& ram = engine_.ram_;
  for (const auto& region : ram.regions()) {
    const std::uint64_t low = std::max(start, region.where.start);
    const std::uint64_t high = std::min(end, region.where.end());
    if (low < high) {
      ram.frames(region.object)
          .set(region.page_of(low), (high - low) / kPageSize, FrameState::absent);
    }
  }
}

void FaultEngine::Reader::report(std::uint32_t object, std::uint64_t first, std::uint32_t count) {
  bump(counters_.refaulted, count);
  const std::uint64_t at = ring_written_.load(std::memory_order_relaxed);
  if (at - ring_read_.load(std::memory_order_acquire) >= kRing) {
    counters_.dropped.fetch_add(1, std::memory_order_relaxed);
  } else {
    ring_[at % kRing] = {object, count, first};
    ring_written_.store(at + 1, std::memory_order_release);
  }
  if (!engine_.deflation_signalled_.exchange(true, std::memory_order_acq_rel)) {
    const std::uint64_t one = 1;
    (void)!::write(engine_.deflation_.get(), &one, sizeof one);
  }
}

FaultEngine::FaultEngine(WatchedRam& ram, Options options, PageSource* source)
    : ram_(ram),
      options_(options),
      source_(source),
      stop_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      deflation_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spread_(ram.shards().size()) {  // at most a reader each
  if (!stop_.valid() || !deflation_.valid()) {
    throw std::system_error(errno, std::generic_category(), "eventfd for the fault engine");
  }
  const auto shards = static_cast<unsigned>(ram.shards().size());
  for (unsigned i = 0; i < shards; ++i) {
    shards_.push_back(std::make_unique<Shard>(options_.window));
  }
  const unsigned wanted =
      options.readers != 0 ? std::min(options.readers, shards) : std::min(shards, usable_cpus());
  for (unsigned i = 0; i < wanted; ++i) {
    std::vector<std::uint32_t> mine;
    for (unsigned shard = i; shard < shards; shard += wanted) {
      mine.push_back(shard);
    }
    readers_.push_back(std::make_unique<Reader>(*this, i, mine));
  }
}

FaultEngine::~FaultEngine() {
  for (const auto& reader : readers_) {
    reader->request_stop();
  }
  const std::uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
}

bool FaultEngine::has_deferred() const {
  return std::any_of(shards_.begin(), shards_.end(), [](const auto& shard) {
    return shard->has_deferred.load(std::memory_order_relaxed);
  });
}

bool FaultEngine::serving() const {
  return std::all_of(readers_.begin(), readers_.end(),
                     [](const auto& reader) { return reader->serving(); });
}

std::uint64_t FaultEngine::refaulted_pages() const {
  std::uint64_t sum = 0;
  for (const auto& reader : readers_) {
    sum += reader->counters().refaulted.load(std::memory_order_relaxed);
  }
  return sum;
}

std::uint64_t FaultEngine::deflated_pages() const {
  std::uint64_t sum = 0;
  for (const auto& reader : readers_) {
    sum += reader->counters().deflated.load(std::memory_order_relaxed);
  }
  return sum;
}

bool FaultEngine::drain(const std::function<void(std::uint32_t, HostRange)>& visit) {
  std::uint64_t ignored = 0;
  (void)!::read(deflation_.get(), &ignored, sizeof ignored);
  deflation_signalled_.store(false, std::memory_order_release);
  bool complete = true;
  for (const auto& reader : readers_) {
    complete = reader->drain(visit) && complete;
  }
  return complete;
}

EngineStats FaultEngine::stats() const {
  EngineStats sum;
  const auto get = [](const std::atomic<std::uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  for (const auto& shard : shards_) {
    sum.sequential += get(shard->sequential);
    sum.window_used += get(shard->window_used);
    sum.window_unused += get(shard->window_unused);
  }
  for (const auto& reader : readers_) {
    const auto& c = reader->counters();
    const auto& f = reader->filler_counters();
    sum.missing_faults += get(c.missing);
    sum.minor_faults += get(c.minor);
    sum.write_protect_faults += get(c.write_protect);
    sum.shared_answers += get(c.shared);
    sum.pages_filled += get(f.pages);
    sum.content_pages += get(f.content_pages);
    sum.poisoned += get(f.poisoned);
    sum.foreign_faults += get(c.foreign);
    sum.already_present += get(f.already_present);
    sum.deferred += get(c.deferred);
    sum.no_memory += get(f.no_memory);
    sum.vanished += get(f.vanished);
    sum.remove_events += get(c.removes);
    sum.reads += get(c.reads);
    sum.sleeps += get(c.sleeps);
    // Of several readers the slowest is shown: quantiles do not add up.
    sum.p50 = std::max(sum.p50, reader->latency().quantile(0.5));
    sum.p90 = std::max(sum.p90, reader->latency().quantile(0.9));
    sum.p99 = std::max(sum.p99, reader->latency().quantile(0.99));
    sum.p999 = std::max(sum.p999, reader->latency().quantile(0.999));
  }
  return sum;
}

}  // namespace fileballoon
