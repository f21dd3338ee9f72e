// What the inflater says about itself and the guest: to `stats`, to the host, and to the cold-cache
// thread. Part of Inflater, in a file of its own.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "fileballoon/process_cpu.h"
#include "guest-fs/guest_memory.h"
#include "guest-fs/inflater.h"
#include "guest-fs/log.h"
#include "guest-fs/reclaim/linux_cache_kernel.h"

namespace fileballoon::guest {
namespace {

using std::chrono::duration_cast;
using std::chrono::nanoseconds;

/// CPU time in a tick that makes a guest busy.
constexpr double kBusySeconds = 0.1;

}  // namespace

double Inflater::own_cpu_seconds() const {
  double sum = 0;
  for (const pid_t pid : {::getpid(), pipeline_.read_ahead().pid(), ::getppid()}) {
    sum += cpu_seconds_of(pid);
  }
  return sum;
}

void Inflater::feed_cache(Clock::time_point now) {
  if (now >= next_activity_) {
    next_activity_ = now + kTick;
    // A guest that computes over what it has cached shows neither faults nor reads.
    const double all = busy_seconds();
    const double busy = all - std::exchange(busy_s_, all);
    growth_.note_others_cpu(all - own_cpu_seconds(), now);
    busy_activity_ += busy > kBusySeconds ? ColdCacheThread::kActive : 0;
    const std::string vmstat = read_file("/proc/vmstat");
    const std::uint64_t activity = parse_cache_numbers(vmstat, "").activity + busy_activity_;
    if (activity - std::exchange(activity_, activity) >= ColdCacheThread::kActive) {
      growth_.note_work(now);
    }
    // Without the counter (no CONFIG_MIGRATION) nothing moves.
    oom_kills_ = find_vmstat(vmstat, "oom_kill");
    moved_.note_migrations(find_vmstat(vmstat, "pgmigrate_success").value_or(0));
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
  stats_.lock_limited = lockable_pages_ < floor_.capacity() ? 1 : 0;
  stats_.deflate_mode = static_cast<std::uint64_t>(config_.deflate);
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
      {StatKey::deflate_mode, stats_.deflate_mode},
      {StatKey::mem_total_bytes, memory.total.count()},
      {StatKey::mem_free_bytes, memory.free.count()},
      {StatKey::mem_available_bytes, memory.available.count()},
      {StatKey::cached_bytes, memory.cached.count()},
  };
  if (const auto pressure = parse_pressure(read_file("/proc/pressure/memory"))) {
    stats.values.emplace_back(StatKey::psi_some_avg10_centi, pressure->some_avg10_centi);
    stats.values.emplace_back(StatKey::psi_full_avg10_centi, pressure->full_avg10_centi);
  }
  if (oom_kills_) {
    stats.values.emplace_back(StatKey::oom_kills, *oom_kills_);
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

}  // namespace fileballoon::guest
