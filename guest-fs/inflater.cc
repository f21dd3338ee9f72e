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
/// Free pages in the lists of CPUs that are worth a visit to each CPU: 4 MiB.
constexpr std::uint64_t kWorthShortening = 1024;
/// Eighths by which a visit shortens them: two thirds of a list are left after three.
constexpr int kShortenings = 3;
/// How much of the margin above the kernel's own reserve an exchange may use: half, so that it does
/// not wake reclaim.
constexpr std::uint64_t kExchangeDepth = 2;
/// One step of a deflation, so that the loop still serves its channel.
constexpr std::uint64_t kDropStep = 8192;
/// Placing takes at most one part in five of a CPU.
constexpr int kPlaceRest = 4;

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
  if (config.deflate == DeflateMode::tell_host_first) {
    hello.features |= wire::kFeatureTellHostFirst;
  }
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
      lockable_pages_(floor_.capacity()),
      moved_(file_, floor_, book_),
      deflate_reports_(file_, book_, config_.deflate, config_.deflate_every),
      told_deflation_(floor_),
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
    if (leave_until_ && (may_leave() || now >= *leave_until_)) {
      return End::stopped;
    }
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                   more ? 0 : wait_ms(Clock::now()));
    for (int i = 0; i < count; ++i) {
      const std::uint64_t tag = events.at(static_cast<std::size_t>(i)).data.u64;
      if (tag == kControlTag) {
        if (const auto end = read_control(); end && !takes_leave_first(*end)) {
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
  if (decision_.wait.count() > 0) {
    until = std::min(until, decided_at_ + decision_.wait);
  }
  if (growth_.sees_work(now) && evictable_pages_ > 0) {
    until = std::min(until, now + GiveWay::kLook);
  }
  for (const auto& due :
       {link_.is_established() ? moved_.deadline() : std::nullopt, deflate_reports_.deadline(),
        told_deflation_.deadline(now), leave_until_}) {
    until = std::min(until, due.value_or(until));
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
  bool more = follow_limits(limits, now);
  give_way(now);
  if (!leave_until_ || tells_first()) {
    more |= grow(limits, now);
    free_what_cpus_keep(now);
    exchange_reserve(now);
    more |= tell();
  }
  const bool growing =
      decision_.reason == GrowthReason::growing || decision_.reason == GrowthReason::beside_work;
  if (!growing && pipeline_.in_flight_pages() == 0) {
    place(now);
  }
  look_around(now, growing);
  follow_pages(now);
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
  const Bytes floor = tells_first() ? limits.target : limits.floor;
  const std::uint64_t wanted = std::min(floor.whole_pages(), lockable_pages_);
  const std::uint64_t have = floor_.pages() + pipeline_.floor_pages();
  return wanted > have ? wanted - have : 0;
}

bool Inflater::follow_limits(const Limits& limits, Clock::time_point now) {
  if (tells_first()) {
    ask_host_to_back(limits.target.whole_pages(), now);
    return false;
  }
  const std::uint64_t floor = limits.floor.whole_pages();
  if (floor_.pages() > floor) {
    scratch_.clear();
    floor_.shrink_to(floor, scratch_);
    for (const LockedFloor::Released& released : scratch_) {
      become_evictable(released.extent, released.frames);
    }
  }
  const std::uint64_t target = limits.target.whole_pages();
  std::uint64_t above = resident_pages() > target ? resident_pages() - target : 0;
  // A floor that rises inside a full balloon takes its pages from the evictable part; so does one
  // that rises where the evictable part has all the memory that may be taken.
  if (above == 0 && link_.is_established() && missing_floor(limits) > 0 && evictable_pages_ > 0 &&
      (resident_pages() + pipeline_.batch_pages() > target ||
       decision_.reason == GrowthReason::below_reserve)) {
    above = std::min(pipeline_.batch_pages(), missing_floor(limits));
  }
  if (above == 0) {
    return false;
  }
  const std::uint64_t gone = drop_evictable(std::min(above, kDropStep));
  stats_.dropped_pages += gone;
  return gone > 0 && gone < above;
}

void Inflater::become_evictable(Extent extent, std::span<const GuestFrame> frames) {
  evictable_.push_back(extent);
  evictable_pages_ += extent.count;
  book_.add(extent, frames);
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

void Inflater::give_way(Clock::time_point now) {
  if (pipeline_.in_flight_pages() > 0 || exchange_.is_under_way()) {
    give_way_.forget();  // what the balloon does itself moves free memory, too
  }
  if (tells_first() || !growth_.sees_work(now) || evictable_pages_ == 0) {
    return;
  }
  const std::uint64_t pages = give_way_.look(free_memory(), marks_.reclaims_below, now);
  if (pages == 0) {
    return;
  }
  const std::uint64_t gone = drop_evictable(pages);
  give_way_.gave(gone);
  stats_.evicted_pages += gone;
  stats_.yielded_pages += gone;
  stop_growing(GrowthReason::backing_off, GiveWay::kPause);
}

void Inflater::stop_growing(GrowthReason why, nanoseconds time) {
  quiet_reason_ = why;
  quiet_until_ = Clock::now() + time;
}

void Inflater::read_pressure(Clock::time_point now) {
  if (now >= next_pressure_) {
    next_pressure_ = now + Growth::kPressureWindow;
    growth_.note_stalls(parse_cache_numbers("", read_file("/proc/pressure/memory")).stalled, now);
    growth_.note_others_cpu(busy_seconds() - own_cpu_seconds(), now);
  }
}

void Inflater::free_what_cpus_keep(Clock::time_point now) {
  // Growth that takes less than it could has all there is, but for what trickles out of the lists.
  const bool has_all =
      decision_.reason == GrowthReason::below_reserve ||
      (decision_.reason == GrowthReason::growing && decision_.pages < pipeline_.batch_pages());
  if (!has_all || !growth_.sees_work(now) || now < next_shortening_) {
    return;
  }
  next_shortening_ = now + Growth::kReserveWatch;
  if (spare_in_cpu_lists(read_file("/proc/zoneinfo")) >= kWorthShortening) {
    for (int i = 0; i < kShortenings; ++i) {
      shorten_cpu_lists();
    }
  }
}

void Inflater::exchange_reserve(Clock::time_point now) {
  // Small pages would be handed out again at once: free memory is used last in, first out.
  if (!file_.has_large_pages() || tells_first()) {
    return;
  }
  // Pages that are dropped may stay in a list of a CPU and are then missing from MemFree.
  const Bytes kept_free = reserve_ - Bytes(reserve_margin(config_.ram).count() / kExchangeDepth);
  const bool may_exchange = decision_.reason == GrowthReason::below_reserve &&
                            Bytes(stats_.free_bytes) >= kept_free && link_.is_established() &&
                            !leave_until_;
  if (!exchange_.is_under_way()) {
    if (!exchange_.due(may_exchange && pipeline_.in_flight_pages() == 0, now)) {
      return;
    }
    const std::string blocks = read_file("/proc/buddyinfo");
    exchange_.begin({pages_in_cpu_lists(read_file("/proc/zoneinfo")),
                     free_blocks(blocks, 1) - free_blocks(blocks, kFolioPages) * kFolioPages},
                    now);
  }
  if (!may_exchange) {
    exchange_.end(now);
    return;
  }
  while (pipeline_.can_fill()) {
    const auto part = exchange_.next(kFolioPages, now);
    if (!part) {
      return;
    }
    if (drop_evictable(part->pages) < part->pages) {
      exchange_.give_up(now);
      return;
    }
    stats_.exchanged_pages += part->pages;
    pipeline_.fill_small({next_evictable_, part->pages}, part->cpu);
    next_evictable_ = next_evictable_ + part->pages;
  }
}

bool Inflater::may_grow(const Limits& limits, Clock::time_point now) {
  if (tells_first() && link_.is_established() && !host_backs_) {
    decision_ = {GrowthReason::host_cannot_back, 0, {}};
    return false;
  }
  if (tells_first() && told_deflation_.is_asking()) {
    decision_ = {GrowthReason::above_target, 0, {}};
    return false;
  }
  if (tells_first() && quiet_until_ <= now && !told_deflation_.can_hold()) {
    log_warning("no pipe to pin more pages with; raise the limit of open files");
    stop_growing(GrowthReason::failed, kFailurePause);
  }
  if (now < quiet_until_) {
    decision_ = {quiet_reason_, 0, quiet_until_ - now};
    return false;
  }
  if (resident_pages() < limits.target.whole_pages()) {
    read_pressure(now);
  }
  return true;
}

bool Inflater::grow(const Limits& limits, Clock::time_point now) {
  if (!may_grow(limits, now)) {
    decided_at_ = now;
    return false;
  }
  while (true) {
    GuestSample sample;
    sample.free = free_memory();
    sample.reserve = reserve_;
    sample.resident = Bytes::pages(resident_pages());
    sample.evicted_pages = stats_.evicted_pages - stats_.yielded_pages;
    sample.host_present = link_.is_established();
    decision_ = growth_.decide(sample, limits, now);
    decided_at_ = now;
    stats_.free_bytes = sample.free.count();
    if (decision_.reason != GrowthReason::growing || !pipeline_.can_fill()) {
      return false;
    }
    exchange_.note_growth(decision_.pages);
    growth_.note_taken(decision_.pages);
    growth_.note_work(now);  // memory that becomes free seldom comes alone
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
    told_.push_back(link_.send_report(batch->ranges));
    pipeline_.mark_told(*batch, told_.back());
    return true;
  }
  if (error == EFAULT || error == EIO || error == ENOTCONN) {
    file_failed_ = true;  // the other process is gone
    return false;
  }
  log_warning(std::string("a batch could not be pinned: ") + std::strerror(error));
  stop_growing(GrowthReason::failed, kFailurePause);
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
  notice_plugged_memory();
  marks_ = kernel_marks(read_file("/proc/zoneinfo"));
  reserve_ = marks_.reserve + reserve_margin(config_.ram);
  stats_.reserve_bytes = reserve_.count();
}

}  // namespace fileballoon::guest
