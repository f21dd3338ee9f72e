// Ceilings: how much each VM may take at most until the host is looked at again, so that all of
// them together never take more than there is, whatever their guests do meanwhile. Targets are
// wishes that take time; a ceiling is kept at every moment, where faults are answered
// (uffd/fill_limit.h). Pure.
#pragma once

#include <span>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon {

struct CeilingInput {
  Bytes ram;
  Bytes target;     ///< the arbiter's
  Bytes footprint;  ///< measured now
};

/// One ceiling for each VM: what it may have or has already, whichever is more, and an equal part
/// of what is left of `capacity`, up to its RAM. Where all that is held exceeds the capacity nobody
/// may grow: VMs above their target are held at their footprint, the others share what there is
/// below it; the sum is then at most the larger of the capacity and the footprints.
[[nodiscard]] std::vector<Bytes> ceilings(std::span<const CeilingInput> vms, Bytes capacity);

}  // namespace fileballoon
