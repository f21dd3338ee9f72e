#include "host/cgroup_ceiling.h"

namespace fileballoon::host {

void CgroupCeiling::update(const CgroupMemory& cgroup, Bytes footprint,
                           std::chrono::nanoseconds passed) {
  const std::optional<Bytes> bound = ceiling_in(cgroup, footprint);
  if (!bound) {
    ceiling_.reset();
    return;
  }
  HostReport report;
  report.available = *bound - footprint;
  report.limit = bound;
  report.psi_some = cgroup.psi_some;
  report.psi_full = cgroup.psi_full;
  pressure_.update(report, footprint, passed);
  ceiling_ = pressure_.budget();
}

}  // namespace fileballoon::host
