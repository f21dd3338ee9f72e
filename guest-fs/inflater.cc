#include "guest-fs/inflater.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "guest-fs/guest_memory.h"
#include "guest-fs/log.h"
#include "guest-fs/reclaim/linux_cache_kernel.h"

namespace fileballoon::guest {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr std::uint64_t kControlTag = 1;
constexpr std::uint64_t kLinkTag = 2;
constexpr std::uint64_t kCacheTag = 3;
constexpr std::uint64_t kFilledTag = 4;
constexpr std::uint64_t kDeathTag = 5;

/// The one wake-up a second at rest.
constexpr seconds kTick{1};
/// Watermarks change only when somebody writes vm.min_free_kbytes or memory is plugged.
constexpr seconds kMemoryRefresh{10};
/// Counting all pages costs about 10 ns each; at most 1 part in 100 of the time goes into it while
/// growing, 1 in 500 at rest.
constexpr milliseconds kCountAtLeastEvery{250};
constexpr int kCountShareGrowing = 100;
constexpr int kCountShareResting = 500;
/// While growing, the youngest pages are looked at this often: they are what reclaim takes first.
constexpr milliseconds kProbeEvery{50};
constexpr std::uint64_t kProbePages = 2048;
/// One step of a deflation, so that the loop still serves its channel.
constexpr std::uint64_t kDropStep = 8192;
/// CPU time in a tick that makes a guest busy.
constexpr double kBusySeconds = 0.1;
/// Placing takes at most one part in five of a CPU.
constexpr int kPlaceRest = 4;
/// After a batch failed here (no memory, no frame number), before the next try.
constexpr seconds kFailurePause{1};

UniqueFd make_epoll(int control_fd, const ReadAhead& read_ahead) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const auto add = [&epoll](int fd, std::uint32_t events, std::uint64_t tag) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = tag;
    if (!epoll.valid() || ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      throw std::system_error(errno, std::generic_category(), "epoll");
    }
  };
  add(control_fd, EPOLLIN | EPOLLRDHUP, kControlTag);
  add(read_ahead.fd(), EPOLLIN, kFilledTag);
  add(read_ahead.pidfd(), EPOLLIN, kDeathTag);
  return epoll;
}

/// Readable, edge-triggered, whenever the cold-cache thread has freed memory.
UniqueFd make_progress_event(int epoll_fd) {
  UniqueFd progress(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = kCacheTag;
  if (!progress.valid() || ::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, progress.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  return progress;
}

wire::Hello make_hello(const InflaterConfig& config) {
  wire::Hello hello;
  hello.ram = config.ram_ranges;
  if (hello.ram.size() > wire::kMaxRamRanges) {
    hello.ram.resize(wire::kMaxRamRanges);
  }
  // "d4d4f6a8-…": hexadecimal digits with dashes between.
  const std::string text = read_file("/proc/sys/kernel/random/boot_id");
  std::size_t nibble = 0;
  for (const char c : text) {
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value >= 0 && nibble < 2 * hello.boot_id.size()) {
      auto& byte = hello.boot_id.at(nibble / 2);
      byte = static_cast<std::uint8_t>((byte << 4) | value);
      ++nibble;
    }
  }
  return hello;
}

}  // namespace

Inflater::Inflater(InflaterConfig config, SharedBlock& shared, int control_fd)
    : config_(std::move(config)),
      shared_(shared),
      control_fd_(control_fd),
      cache_kernel_(std::make_unique<LinuxCacheKernel>()),
      file_(config_.mount_point, config_.pages),
      pipeline_(file_),
      placer_(file_),
      epoll_(make_epoll(control_fd_, pipeline_.read_ahead())),
      floor_(file_, config_.ram),
      growth_(pipeline_.batch_pages()),
      link_(config_.channel, make_hello(config_), *this, epoll_.get(), kLinkTag),
      cache_progress_(make_progress_event(epoll_.get())),
      cache_(std::move(cache_kernel_), config_.cache,
             [fd = cache_progress_.get()] { ::eventfd_write(fd, 1); }) {
  scratch_.reserve(64);
  stats_.large_pages = file_.has_large_pages() ? 1 : 0;
  file_.why_small().copy(stats_.pages_note.data(), stats_.pages_note.size() - 1);
  say_cache_note();
}

// --------------------------------------------------------------------------------------- the loop

Inflater::End Inflater::run() {
  std::array<epoll_event, 4> events;
  while (true) {
    const auto now = Clock::now();
    const bool more = step(now);
    if (file_failed_) {
      return End::file_failed;
    }
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                   more ? 0 : wait_ms(Clock::now()));
    for (int i = 0; i < count; ++i) {
      const std::uint64_t tag = events.at(static_cast<std::size_t>(i)).data.u64;
      if (tag == kControlTag) {
        if (const auto end = read_control()) {
          return *end;
        }
      } else if (tag == kDeathTag) {
        log_error("the read-ahead process died");
        return End::file_failed;
      }
    }
  }
}

std::optional<Inflater::End> Inflater::read_control() {
  std::array<char, 64> bytes;
  const ssize_t got = ::recv(control_fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got > 0) {
    const std::span<const char> said(bytes.data(), static_cast<std::size_t>(got));
    if (std::find(said.begin(), said.end(), 's') != said.end()) {
      return End::stopped;
    }
    return std::nullopt;
  }
  if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    return End::orphaned;
  }
  return std::nullopt;
}

int Inflater::wait_ms(Clock::time_point now) const {
  Clock::time_point until = next_tick_;
  if (const auto deadline = link_.deadline()) {
    until = std::min(until, *deadline);
  }
  if (!placer_.is_idle() && pipeline_.in_flight_pages() == 0) {
    until = std::min(until, next_place_);
  }
  if (decision_.reason == GrowthReason::backing_off) {
    until = std::min(until, decided_at_ + decision_.wait);
  }
  const auto left = duration_cast<milliseconds>(until - now) + milliseconds(1);
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

bool Inflater::step(Clock::time_point now) {
  if (now >= next_tick_) {
    next_tick_ = now + kTick;
  }
  link_.service(now);
  refresh_memory(now);
  const Limits limits = shared_.limits();
  pipeline_.collect();
  bool more = follow_limits(limits);
  more |= grow(limits, now);
  more |= tell();
  const bool growing = decision_.reason == GrowthReason::growing;
  if (!growing && pipeline_.in_flight_pages() == 0) {
    place(now);
  }
  look_around(now, growing);
  feed_cache(now);
  send_stats(now);
  link_.service(now);
  publish(now);
  return more && !file_failed_;
}

// ---------------------------------------------------------------------------- growing, shrinking

std::uint64_t Inflater::resident_pages() const {
  return evictable_pages_ + floor_.pages() + pipeline_.in_flight_pages();
}

std::uint64_t Inflater::missing_floor(const Limits& limits) const {
  const std::uint64_t wanted = std::min(limits.floor.whole_pages(), floor_.capacity());
  const std::uint64_t have = floor_.pages() + pipeline_.floor_pages();
  return wanted > have ? wanted - have : 0;
}

bool Inflater::follow_limits(const Limits& limits) {
  const std::uint64_t floor = limits.floor.whole_pages();
  if (floor_.pages() > floor) {
    scratch_.clear();
    floor_.shrink_to(floor, scratch_);
    for (const Extent& extent : scratch_) {
      evictable_.push_back(extent);
      evictable_pages_ += extent.count;
    }
  }
  const std::uint64_t target = limits.target.whole_pages();
  std::uint64_t above = resident_pages() > target ? resident_pages() - target : 0;
  // A floor that rises inside a full balloon takes its pages from the evictable part.
  if (above == 0 && link_.is_established() && missing_floor(limits) > 0 && evictable_pages_ > 0 &&
      resident_pages() + pipeline_.batch_pages() > target) {
    above = std::min(pipeline_.batch_pages(), missing_floor(limits));
  }
  if (above == 0) {
    return false;
  }
  const std::uint64_t gone = drop_evictable(std::min(above, kDropStep));
  stats_.dropped_pages += gone;
  return gone > 0 && gone < above;
}

std::uint64_t Inflater::drop_evictable(std::uint64_t pages) {
  // From the old end: the list stays one extent, and what reclaim has eaten from the young end is
  // not walked. A page that cannot be dropped goes to the end of the queue.
  std::uint64_t gone = 0;
  std::size_t stubborn = 0;
  while (gone < pages && !evictable_.empty() && stubborn <= evictable_.extents().size()) {
    // A folio goes whole: where that is more than asked for, small pages make up for it.
    const std::uint64_t unit = file_.drop_pages();
    const std::uint64_t first = evictable_.extents().front().first.index();
    const std::uint64_t end = (first + pages - gone + unit - 1) / unit * unit;
    const Extent extent = evictable_.pop_front(end - first);
    gone += file_.drop(extent);
    if (file_.resident(extent) > 0) {
      evictable_.push_back(extent);
      ++stubborn;
    }
  }
  evictable_pages_ -= std::min(evictable_pages_, gone);
  if (evictable_.empty()) {
    evictable_pages_ = 0;
  }
  return gone;
}

bool Inflater::grow(const Limits& limits, Clock::time_point now) {
  if (now < quiet_until_) {
    decision_ = {GrowthReason::backing_off, 0, quiet_until_ - now};
    decided_at_ = now;
    return false;
  }
  while (true) {
    GuestSample sample;
    sample.free = free_memory();
    sample.reserve = reserve_;
    sample.resident = Bytes::pages(resident_pages());
    sample.evicted_pages = stats_.evicted_pages;
    sample.host_present = link_.is_established();
    decision_ = growth_.decide(sample, limits, now);
    decided_at_ = now;
    stats_.free_bytes = sample.free.count();
    if (decision_.reason != GrowthReason::growing || !pipeline_.can_fill()) {
      return false;
    }
    const std::uint64_t for_floor = missing_floor(limits);
    if (for_floor > 0) {
      const Extent extent{next_locked_, std::min(decision_.pages, for_floor)};
      next_locked_ = extent.end();
      pipeline_.fill(extent, true);
    } else {
      const std::uint64_t unit = file_.drop_pages();
      if (decision_.pages % unit == 0) {  // a folio lies at a multiple of its size
        next_evictable_ = FilePage((next_evictable_.index() + unit - 1) / unit * unit);
      }
      const Extent extent{next_evictable_, decision_.pages};
      next_evictable_ = extent.end();
      pipeline_.fill(extent, false);
    }
  }
}

bool Inflater::tell() {
  Batch* const batch = link_.is_established() ? pipeline_.next_to_tell() : nullptr;
  if (batch == nullptr) {
    return false;
  }
  const int error = pipeline_.pin_and_look(*batch);
  if (error == 0) {
    pipeline_.mark_told(*batch, link_.send_report(batch->ranges));
    return true;
  }
  if (error == EFAULT || error == EIO || error == ENOTCONN) {
    file_failed_ = true;  // the other process is gone
    return false;
  }
  log_warning(std::string("a batch could not be pinned: ") + std::strerror(error));
  quiet_until_ = Clock::now() + kFailurePause;
  return false;
}

void Inflater::place(Clock::time_point now) {
  if (!placer_.is_idle() && now >= next_place_) {
    placer_.place_some();
    const auto end = Clock::now();
    next_place_ = end + (end - now) * kPlaceRest;
  }
}

// --------------------------------------------------------------------------------- what is there

void Inflater::look_around(Clock::time_point now, bool growing) {
  if (growing && now >= next_probe_) {
    next_probe_ = now + kProbeEvery;
    if (!evictable_.empty()) {
      const Extent& last = evictable_.extents().back();
      const std::uint64_t pages = std::min(last.count, kProbePages);
      const Extent youngest{FilePage(last.end().index() - pages), pages};
      if (file_.resident(youngest) < pages) {
        next_count_ = std::min(next_count_, now);
      }
    }
  }
  const bool asked = shared_.refresh_wanted.load() != shared_.refresh_done.load();
  if (now >= next_count_ || asked) {
    count_residency(now);
    const auto cost = Clock::now() - now;
    next_count_ =
        now + (growing ? std::max<nanoseconds>(kCountAtLeastEvery, cost * kCountShareGrowing)
                       : std::max<nanoseconds>(kTick, cost * kCountShareResting));
  }
}

void Inflater::count_residency(Clock::time_point) {
  // In pieces, so that what is empty leaves the list and is never walked again.
  constexpr std::uint64_t kPiece = 32768;
  std::uint64_t resident = 0;
  ExtentList kept;
  for (const Extent& extent : evictable_.extents()) {
    for (std::uint64_t at = 0; at < extent.count; at += kPiece) {
      const Extent piece{extent.first + at, std::min(kPiece, extent.count - at)};
      const std::uint64_t here = file_.resident(piece);
      if (here > 0) {
        kept.push_back(piece);
      }
      resident += here;
    }
  }
  evictable_ = std::move(kept);
  if (resident < evictable_pages_) {
    stats_.evicted_pages += evictable_pages_ - resident;
  }
  evictable_pages_ = resident;
}

void Inflater::refresh_memory(Clock::time_point now) {
  if (now < next_memory_) {
    return;
  }
  next_memory_ = now + kMemoryRefresh;
  reserve_ = balloon_reserve(kernel_reserve(read_file("/proc/zoneinfo")), config_.ram);
  stats_.reserve_bytes = reserve_.count();
}

void Inflater::feed_cache(Clock::time_point now) {
  if (now >= next_activity_) {
    next_activity_ = now + kTick;
    // A guest that computes over what it has cached shows neither faults nor reads.
    double up = 0;
    double idle = 0;
    (void)std::sscanf(read_file("/proc/uptime").c_str(), "%lf %lf", &up, &idle);
    const double cpus = static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN));
    const double busy = (cpus * up - idle) - std::exchange(busy_s_, cpus * up - idle);
    busy_activity_ += busy > kBusySeconds ? ColdCacheThread::kActive : 0;
    activity_ = parse_cache_numbers(read_file("/proc/vmstat"), "").activity + busy_activity_;
  }
  cache_.update({Bytes::pages(resident_pages()), shared_.limits().target, Bytes(stats_.free_bytes),
                 reserve_, link_.is_established()},
                activity_);
  const ColdCacheStats cache = cache_.stats();
  stats_.cache_mode = static_cast<std::uint64_t>(cache.mode);
  stats_.cache_method = static_cast<std::uint64_t>(cache.method);
  stats_.cache_state = static_cast<std::uint64_t>(cache.state);
  stats_.cache_evicted_pages = cache.evicted_pages;
  stats_.cache_pauses = cache.brakes;
  stats_.purged_bytes = cache.purged_pages * kPageSize;
  stats_.epoch_turns = cache.epoch_turns;
  stats_.cache_note.fill('\0');
  cache.note.copy(stats_.cache_note.data(), stats_.cache_note.size() - 1);
}

void Inflater::say_cache_note() {
  const std::string note = cache_.stats().note;
  if (!note.empty() && note != said_note_) {
    log_warning("cold page cache: " + note);
    said_note_ = note;
  }
}

void Inflater::publish(Clock::time_point now) {
  stats_.resident_pages = resident_pages();
  stats_.locked_pages = floor_.pages();
  stats_.in_flight_pages = pipeline_.in_flight_pages();
  stats_.sessions = link_.sessions();
  stats_.connected = link_.is_established() ? 1 : 0;
  stats_.growth_reason = static_cast<std::uint64_t>(decision_.reason);
  const auto left = decision_.wait - (now - decided_at_);
  stats_.growth_wait_ns = static_cast<std::uint64_t>(
      std::max<std::int64_t>(0, duration_cast<nanoseconds>(left).count()));
  const std::uint32_t wanted = shared_.refresh_wanted.load();
  shared_.publish(stats_);
  shared_.refresh_done.store(wanted);
}

void Inflater::send_stats(Clock::time_point now) {
  if (!link_.is_established() || now < next_stats_ || link_.backlog() > 0) {
    return;
  }
  next_stats_ = now + kTick;
  const Limits limits = shared_.limits();
  using wire::StatKey;
  const MemoryInfo memory = parse_meminfo(read_file("/proc/meminfo"));
  wire::Stats stats;
  stats.values = {
      {StatKey::resident_pages, resident_pages()},
      {StatKey::target_pages, limits.target.whole_pages()},
      {StatKey::floor_pages, limits.floor.whole_pages()},
      {StatKey::locked_pages, floor_.pages()},
      {StatKey::in_flight_pages, pipeline_.in_flight_pages()},
      {StatKey::evicted_pages, stats_.evicted_pages},
      {StatKey::migrated_pages, stats_.migrated_pages},
      {StatKey::refused_pages, stats_.refused_pages},
      {StatKey::inflated_pages, stats_.inflated_pages},
      {StatKey::growth_reason, static_cast<std::uint64_t>(decision_.reason)},
      {StatKey::cache_mode, stats_.cache_mode},
      {StatKey::cache_method, stats_.cache_method},
      {StatKey::cache_evicted_pages, stats_.cache_evicted_pages},
      {StatKey::cache_purged_pages, Bytes(stats_.purged_bytes).whole_pages()},
      {StatKey::cache_pauses, stats_.cache_pauses},
      {StatKey::epoch, stats_.epoch},
      {StatKey::mem_total_bytes, memory.total.count()},
      {StatKey::mem_free_bytes, memory.free.count()},
      {StatKey::mem_available_bytes, memory.available.count()},
      {StatKey::cached_bytes, memory.cached.count()},
  };
  if (const auto pressure = parse_pressure(read_file("/proc/pressure/memory"))) {
    stats.values.emplace_back(StatKey::psi_some_avg10_centi, pressure->some_avg10_centi);
    stats.values.emplace_back(StatKey::psi_full_avg10_centi, pressure->full_avg10_centi);
  }
  if (const auto kills = find_vmstat(read_file("/proc/vmstat"), "oom_kill")) {
    stats.values.emplace_back(StatKey::oom_kills, *kills);
  }
  // Free memory moves by a few pages all the time; that alone is not worth a message.
  const auto differs = [&](const auto& pair) {
    const std::uint64_t before = last_sent_.find(pair.first).value_or(~std::uint64_t{0});
    const std::uint64_t change = pair.second > before ? pair.second - before : before - pair.second;
    const bool is_bytes =
        pair.first >= StatKey::mem_total_bytes && pair.first <= StatKey::cached_bytes;
    return change > (is_bytes ? Bytes::mib(1).count() : 0);
  };
  if (std::any_of(stats.values.begin(), stats.values.end(), differs)) {
    last_sent_ = stats;
    link_.send_stats(std::move(stats));
  }
}

// ----------------------------------------------------------------------------- what the host says

void Inflater::on_session_start() {
  last_sent_.values.clear();
  next_stats_ = {};
}

void Inflater::on_session_end() {
  // The host may or may not have discarded these; nobody will say. Dropped pages cost it memory
  // only when the guest uses them for something else.
  stats_.cancelled_pages += pipeline_.cancel();
}

void Inflater::on_limits(const wire::LimitsMessage& message) {
  Limits wanted = message.limits;
  if (wanted.target > config_.ram || wanted.floor > wanted.target) {
    log_warning("the host asks for target " + to_string(wanted.target) + " and floor " +
                to_string(wanted.floor) + "; taking what fits into " + to_string(config_.ram));
    wanted.target = std::min(wanted.target, config_.ram);
    wanted.floor = std::min(wanted.floor, wanted.target);
  }
  shared_.set_limits({wanted.target.page_floor(), wanted.floor.page_floor()});
  stats_.epoch = message.epoch;
  cache_.set_epoch(message.epoch);
}

void Inflater::on_ack(const wire::Ack& ack) {
  Batch* const batch = pipeline_.find_told(ack.batch);
  if (batch == nullptr || ack.outcomes.size() != batch->ranges.size()) {
    log_warning("the host acknowledged a batch that is not under way; ignored");
    return;
  }
  std::uint64_t discarded = 0;
  for (std::size_t i = 0; i < ack.outcomes.size(); ++i) {
    const FrameRange& range = batch->ranges[i];
    const wire::RangeOutcome& outcome = ack.outcomes[i];
    discarded += outcome.discarded;
    stats_.not_zero_pages += outcome.not_zero;
    stats_.refused_pages += outcome.refused;
    stats_.failed_pages += outcome.failed;
    if (outcome.discarded * std::uint64_t{2} < range.count) {
      // Keeping pages that the host did not free would cost the guest memory for nothing.
      for (std::uint64_t page = 0; page < batch->extent.count; ++page) {
        const GuestFrame frame = batch->frames.at(page);
        if (frame >= range.first && frame < range.end()) {
          batch->rejected.set(page);
        }
      }
    }
  }
  stats_.inflated_pages += discarded;
  if (batch->rejected.count() * 2 > batch->extent.count) {
    quiet_until_ = Clock::now() + Growth::kBackOff;  // more of the same would be refused too
  }
  if (batch->for_floor && batch->rejected.none()) {
    const int error = floor_.add(batch->extent, batch->frames);
    if (error == 0) {
      static_cast<void>(pipeline_.release(*batch));
      return;
    }
    log_warning("cannot lock floor pages: " + std::string(std::strerror(error)) +
                "; they stay evictable (raise RLIMIT_MEMLOCK, or lower the floor)");
    quiet_until_ = Clock::now() + kFailurePause;
  }
  const Extent extent = batch->extent;
  const std::uint64_t rejected = pipeline_.release(*batch);
  evictable_.push_back(extent);
  evictable_pages_ += extent.count - rejected;
  if (rejected == 0) {
    placer_.add(extent);
  }
}

void Inflater::on_purge(const wire::Purge& purge) {
  log_info("the host asks for " + to_string(purge.amount) + " of page cache");
  cache_.purge(purge.amount);
}

void Inflater::on_cache(const wire::CacheOrder& order) {
  log_info("the host chooses the cache mode " + std::string(to_string(order.mode)));
  cache_.set_mode(order.mode);
}

}  // namespace fileballoon::guest
