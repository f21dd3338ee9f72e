// ProxmoxBalloon: how Proxmox VE sizes a guest's virtio-balloon from its host, for one guest. The
// rule is that of pvestatd (auto_ballooning) and PVE::AutoBalloon (compute_alg1) in pve-manager 8:
// every 10 s the host's free memory is compared with a goal of 80 % in use, and the balloon moves
// by at most 100 MiB towards it, never leaving the guest less than its configured minimum. With one
// guest the statistics that the guest reports (its free memory) cannot change the outcome: Proxmox
// squeezes guests with free memory first, and where there are none, all of them. Pure.
#pragma once

#include <chrono>

#include "fileballoon/bytes.h"

namespace fileballoon::bench {

class ProxmoxBalloon {
 public:
  static constexpr std::chrono::seconds kRound{10};
  static constexpr Bytes kMostChange = Bytes::mib(100);
  /// Differences to the goal up to this are left alone.
  static constexpr Bytes kIgnored = Bytes::mib(10);
  static constexpr std::uint64_t kGoalPercent = 80;

  /// `minimum`: what Proxmox calls the balloon's size; `most`: the guest's RAM.
  ProxmoxBalloon(Bytes host, Bytes minimum, Bytes most)
      : host_(host), minimum_(minimum), most_(most) {}

  /// What the guest is to have next, from what it has now (query-balloon's "actual") and what the
  /// host has in use.
  [[nodiscard]] Bytes next(Bytes actual, Bytes host_used) const;

 private:
  Bytes host_;
  Bytes minimum_;
  Bytes most_;
};

}  // namespace fileballoon::bench
