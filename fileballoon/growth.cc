#include "fileballoon/growth.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace fileballoon {

GrowthDecision Growth::decide(const GuestSample& sample, const Limits& limits,
                              Clock::time_point now) {
  if (sample.evicted_pages > last_evicted_) {
    quiet_until_ = now + kBackOff;
  }
  last_evicted_ = sample.evicted_pages;
  // A target inside a page would be "above" for ever, by no whole page.
  const Bytes target = limits.target.page_floor();
  if (sample.resident > target) {
    return {GrowthReason::above_target, (sample.resident - target).whole_pages(), {}};
  }
  const std::uint64_t missing = (target - sample.resident).whole_pages();
  if (missing == 0) {
    return {GrowthReason::at_target, 0, {}};
  }
  if (!sample.host_present) {
    return {GrowthReason::no_host, 0, {}};
  }
  if (now < quiet_until_) {
    return {GrowthReason::backing_off, 0, quiet_until_ - now};
  }
  const std::uint64_t spare = (sample.free - sample.reserve).whole_pages();
  if (spare < std::min(missing, kMinPages)) {
    return {GrowthReason::below_reserve, 0, kReserveRetry};
  }
  return {GrowthReason::growing, std::min({missing, spare, batch_pages_}), {}};
}

std::string to_string(const GrowthDecision& decision) {
  switch (decision.reason) {
    case GrowthReason::growing:
      return "growing";
    case GrowthReason::at_target:
      return "at target";
    case GrowthReason::above_target:
      return "deflating to target";
    case GrowthReason::below_reserve:
      return "free memory below reserve";
    case GrowthReason::no_host:
      return "no session with a host";
    case GrowthReason::backing_off:
      break;
  }
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "backing off after reclaim, %.1f s left",
                std::chrono::duration<double>(decision.wait).count());
  return text.data();
}

}  // namespace fileballoon
