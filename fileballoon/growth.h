// Growth: when the guest's balloon may grow, and why it does not. It sees samples of the guest's
// numbers and a clock, and answers how many pages to take next; it makes no system call, so every
// rule below is unit-tested. The inflater calls decide() before each batch.
//
// The rules, in order: never past the target; nothing for kBackOff after the balloon file was seen
// to lose pages (growing into pressure would evict the balloon itself, the "busy no-op" that made
// Linux take back a shrinker-based virtio-balloon); nothing while tasks wait for memory (PSI),
// which they do before anything is seen to be evicted; nothing that would take free memory below
// the reserve, so growth by itself never wakes reclaim; and slowly, beside work, what lay free when
// the target rose.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "fileballoon/limits.h"

namespace fileballoon {

/// What the guest looks like at one moment. Sources: /proc/meminfo, /proc/zoneinfo, cachestat(2).
struct GuestSample {
  Bytes free;                       ///< MemFree
  Bytes reserve;                    ///< what must stay free (watermarks and a margin)
  Bytes resident;                   ///< balloon pages in the page cache
  std::uint64_t evicted_pages = 0;  ///< balloon pages that reclaim has taken, since start
  bool host_present = true;         ///< a session stands; without one nothing is inflated
};

/// The values travel in STATS and are never reused.
enum class GrowthReason {
  growing = 0,           ///< take `pages` now
  at_target = 1,         ///< resident is the target
  above_target = 2,      ///< resident is above the target: deflate by `pages`
  backing_off = 3,       ///< reclaim took balloon pages less than kBackOff ago
  below_reserve = 4,     ///< free memory is not above the reserve
  no_host = 5,           ///< no session with a host that could take the memory
  pressure = 6,          ///< tasks wait for memory, or did less than kPressurePause ago
  host_rejects = 7,      ///< the host did not discard most of the last batch
  failed = 8,            ///< a batch could not be filled, pinned or locked
  host_cannot_back = 9,  ///< tell-host-first, and the host does not know how
  beside_work = 10,      ///< growing at the pace that it has beside work
};
inline constexpr GrowthReason kLastGrowthReason = GrowthReason::beside_work;

struct GrowthDecision {
  GrowthReason reason = GrowthReason::at_target;
  std::uint64_t pages = 0;
  /// When asking again can make a difference (zero: when something else changes).
  std::chrono::nanoseconds wait{0};
};

class Growth {
 public:
  using Clock = std::chrono::steady_clock;
  /// Silence after reclaim was seen: the value of the 2012 page-cache balloon.
  static constexpr std::chrono::seconds kBackOff{2};
  /// How long free memory below the reserve is left alone before it is looked at again in a guest
  /// where nothing happens.
  static constexpr std::chrono::seconds kReserveRetry{1};
  /// The same in a guest that works: what a program gives up is the host's after this and not after
  /// a second. A look is one sysinfo(2); the kernel has no event for memory that became free.
  static constexpr std::chrono::milliseconds kReserveWatch{100};
  /// A guest counts as working for this long after it was last seen to.
  static constexpr std::chrono::seconds kWorking{3};
  /// Over this much time the stalls of tasks are looked at: long enough that one page that is read
  /// back does not stand out, short against the 2 s of the back-off.
  static constexpr std::chrono::milliseconds kPressureWindow{250};
  /// Share of that time in which some task waited for memory that stops growth. Senpai holds its
  /// cgroups at 0.1 % of a long time; here the window is short, and one disk read of an evicted
  /// page takes several percent of it.
  static constexpr double kPressureShare = 0.10;
  /// Growth begins again this long after the last window of pressure.
  static constexpr std::chrono::seconds kPressurePause{1};
  /// Beside work, memory that lay free when the target rose is taken evenly (at most one batch
  /// comes at once), at least so many pages a second (16 MiB), and all within this time: a policy
  /// gives the balloon 5 s by default before the host takes memory by force, which costs the guest
  /// more.
  static constexpr std::uint64_t kPagesBesideWork = 4096;
  static constexpr std::chrono::seconds kRise{4};
  /// Something besides the agent works that uses half a CPU; it counts for a second.
  static constexpr double kWorkingCpus = 0.5;
  static constexpr std::chrono::seconds kStillWorks{1};
  /// Over this much time CPU use is looked at: the kernel counts it in ticks of up to 10 ms.
  static constexpr std::chrono::milliseconds kCpuWindow{250};
  /// A change this small is not worth a wake-up of the pipeline.
  static constexpr std::uint64_t kMinPages = 16;

  /// `batch_pages`: upper bound of one decision.
  explicit Growth(std::uint64_t batch_pages) : batch_pages_(batch_pages) {}

  [[nodiscard]] GrowthDecision decide(const GuestSample& sample, const Limits& limits,
                                      Clock::time_point now);

  /// The guest was seen to work (faults, reads, CPU time), or memory has just become free in it.
  void note_work(Clock::time_point now) { works_until_ = now + kWorking; }
  [[nodiscard]] bool sees_work(Clock::time_point now) const { return now < works_until_; }

  /// The decision to grow was followed.
  void note_taken(std::uint64_t pages);

  /// CPU time that all but the agent has used up to `now`, seconds since whenever.
  void note_others_cpu(double seconds, Clock::time_point now);

  /// The "some" total of /proc/pressure/memory at `now`; nothing where the kernel has no PSI.
  void note_stalls(std::optional<std::chrono::microseconds> total, Clock::time_point now);

 private:
  void follow_target(Bytes target, std::uint64_t missing, std::uint64_t spare);
  /// Not before this time where growth is to be slow, and all of `pages` have not been earned.
  [[nodiscard]] std::chrono::nanoseconds hold_back(std::uint64_t pages, Clock::time_point now);

  std::uint64_t batch_pages_;
  Bytes last_target_;
  std::uint64_t lay_free_ = 0;  // of what is missing: was there to be taken when the target rose
  std::uint64_t pace_ = kPagesBesideWork;  // pages a second, of the last rise
  double earned_pages_ = 0;
  Clock::time_point earned_at_{};
  std::optional<double> others_cpu_s_;
  Clock::time_point others_cpu_at_{};
  Clock::time_point others_work_until_{};
  std::optional<std::chrono::microseconds> stalls_;
  Clock::time_point stalls_at_{};
  Clock::time_point pressed_until_{};
  Clock::time_point works_until_{};
  std::uint64_t last_evicted_ = 0;
  Clock::time_point quiet_until_{};
};

/// For `stats`: "backing off after reclaim, 1.2 s left". Any value of `reason` has a text.
[[nodiscard]] std::string to_string(const GrowthDecision& decision);

}  // namespace fileballoon
