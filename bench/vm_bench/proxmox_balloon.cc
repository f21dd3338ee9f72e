#include "bench/vm_bench/proxmox_balloon.h"

#include <algorithm>

namespace fileballoon::bench {

Bytes ProxmoxBalloon::next(Bytes actual, Bytes host_used) const {
  const Bytes wanted(host_.count() / 100 * kGoalPercent);
  if (wanted > host_used + kIgnored) {
    const Bytes desired = std::min(actual + (wanted - host_used), most_);
    return std::max(actual, std::min(desired, actual + kMostChange));
  }
  if (host_used > wanted + kIgnored) {
    const Bytes desired = std::max(actual - (host_used - wanted), minimum_);
    return std::min(actual, std::max(desired, actual - kMostChange));
  }
  return actual;
}

}  // namespace fileballoon::bench
