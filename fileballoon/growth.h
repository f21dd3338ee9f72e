// Growth: when the guest's balloon may grow, and why it does not. It sees samples of the guest's
// numbers and a clock, and answers how many pages to take next; it makes no system call, so every
// rule below is unit-tested. The inflater calls decide() before each batch.
//
// The rules, in order: never past the target; nothing for kBackOff after the balloon file was seen
// to lose pages (growing into pressure would evict the balloon itself, the "busy no-op" that made
// Linux take back a shrinker-based virtio-balloon); nothing that would take free memory below the
// reserve, so growth by itself never wakes reclaim.
#pragma once

#include <chrono>
#include <cstdint>
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

enum class GrowthReason {
  growing,        ///< take `pages` now
  at_target,      ///< resident is the target
  above_target,   ///< resident is above the target: deflate by `pages`
  backing_off,    ///< reclaim took balloon pages less than kBackOff ago
  below_reserve,  ///< free memory is not above the reserve
  no_host,        ///< no session with a host that could take the memory
};

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
  /// How long free memory below the reserve is left alone before it is looked at again.
  static constexpr std::chrono::seconds kReserveRetry{1};
  /// A change this small is not worth a wake-up of the pipeline.
  static constexpr std::uint64_t kMinPages = 16;

  /// `batch_pages`: upper bound of one decision.
  explicit Growth(std::uint64_t batch_pages) : batch_pages_(batch_pages) {}

  [[nodiscard]] GrowthDecision decide(const GuestSample& sample, const Limits& limits,
                                      Clock::time_point now);

 private:
  std::uint64_t batch_pages_;
  std::uint64_t last_evicted_ = 0;
  Clock::time_point quiet_until_{};
};

/// For `stats`: "backing off after reclaim, 1.2 s left".
[[nodiscard]] std::string to_string(const GrowthDecision& decision);

}  // namespace fileballoon
