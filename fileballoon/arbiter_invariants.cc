#include "fileballoon/arbiter_invariants.h"

#include <algorithm>

namespace fileballoon {

namespace {

std::string name_of(const ArbitratedVm& vm) {
  return "VM " + std::to_string(vm.id.index) + " of band " + std::to_string(vm.settings.band);
}

}  // namespace

void check_invariants(const Arbiter& arbiter, std::span<const ArbitratedVm> vms,
                      std::vector<std::string>& violations) {
  const TickSummary& summary = arbiter.summary();
  Bytes targets;
  // The highest band with a VM that is planned below its need, and with one that waits.
  unsigned lacking = kBands;
  unsigned waiting = kBands;
  for (const ArbitratedVm& vm : vms) {
    const VmDecision d = arbiter.decision(vm.id);
    targets += d.target;
    if (d.target < vm.settings.minimum) {
      violations.push_back(name_of(vm) + ": target " + to_string(d.target) +
                           " below its minimum of " + to_string(vm.settings.minimum));
    }
    if (d.target > vm.settings.ceiling) {
      violations.push_back(name_of(vm) + ": target " + to_string(d.target) +
                           " above its ceiling of " + to_string(vm.settings.ceiling));
    }
    if (d.goal < d.need) {
      lacking = std::min(lacking, vm.settings.band);
    }
    if (d.target < std::min(d.goal, d.need)) {
      waiting = std::min(waiting, vm.settings.band);
    }
  }
  if (summary.shortage == Bytes(0) && targets > summary.capacity) {
    violations.push_back("targets add up to " + to_string(targets) + ", the host has " +
                         to_string(summary.capacity));
  }
  for (const ArbitratedVm& vm : vms) {
    const VmDecision d = arbiter.decision(vm.id);
    // A guest that took memory back in this very moment keeps it until the next tick.
    const bool exempt =
        d.reason == TargetReason::stuck_refused || d.reason == TargetReason::fast_deflate;
    if (vm.settings.band > lacking && d.target > vm.settings.minimum && !exempt) {
      violations.push_back(name_of(vm) + " is left " + to_string(d.target - vm.settings.minimum) +
                           " while band " + std::to_string(lacking) + " lacks memory");
    }
    if (vm.settings.band > waiting && d.target > d.goal && !exempt) {
      violations.push_back(name_of(vm) + " is spared " + to_string(d.target - d.goal) +
                           " while band " + std::to_string(waiting) + " waits");
    }
  }
}

}  // namespace fileballoon
