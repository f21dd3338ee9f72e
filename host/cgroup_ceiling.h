// CgroupCeiling: how much memory a VM may have inside the cgroup of its VMM. The arbiter's own
// rules for a host (fileballoon/arbiter_pressure.h) hold there, too: a part of the limit stays free
// for bursts, and while tasks of the cgroup stall for want of memory (its PSI) more does, so that
// the guest gives memory before the kernel takes the VMM's away. Pure; one per VM; time enters as a
// value.
#pragma once

#include <chrono>
#include <optional>

#include "fileballoon/arbiter_pressure.h"
#include "host/host_memory.h"

namespace fileballoon::host {

class CgroupCeiling {
 public:
  /// Takes what was read of the cgroup and of the VM's RAM, `passed` after the last time.
  void update(const CgroupMemory& cgroup, Bytes footprint, std::chrono::nanoseconds passed);

  /// The most that guest RAM should take; nothing where the cgroup has no limit.
  [[nodiscard]] std::optional<Bytes> ceiling() const { return ceiling_; }

 private:
  HostPressure pressure_;
  std::optional<Bytes> ceiling_;
};

}  // namespace fileballoon::host
