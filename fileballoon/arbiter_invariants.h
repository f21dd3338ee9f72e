// What must hold after every tick of the arbiter, checked from its public answers alone. The
// property test and bench/arbiter_sim count violations with this; it is no part of the daemon's
// work.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "fileballoon/arbiter.h"

namespace fileballoon {

/// One VM as its owner knows it, beside the arbiter's decision for it.
struct ArbitratedVm {
  VmId id;
  VmSettings settings;
  Bytes footprint;
};

/// Appends a sentence for each rule that the last tick of `arbiter` broke, to `violations`:
/// 1. the sum of targets is at most the capacity (where the minimums leave a choice);
/// 2. no target is below its VM's minimum, or above its ceiling;
/// 3. while a VM is planned below its need, VMs of lower bands are ordered down to their minimums,
///    or hold memory that they cannot be made to give;
/// 4. while a VM waits to be raised to what it needs, no VM of a lower band is spared.
void check_invariants(const Arbiter& arbiter, std::span<const ArbitratedVm> vms,
                      std::vector<std::string>& violations);

}  // namespace fileballoon
