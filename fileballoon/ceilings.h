// Ceilings: how much each VM may take at most until the host is looked at again, so that all of
// them together never take more than there is, whatever their guests do meanwhile. Targets are
// wishes that take time; a ceiling is kept at every moment, where faults are answered
// (uffd/fill_limit.h). Pure.
#pragma once

#include <optional>
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

struct CeilingState {
  CeilingInput vm;
  bool can_hold = false;          ///< there is someone who keeps a ceiling for it
  std::optional<Bytes> in_force;  ///< the highest that may be kept now; nothing: none
};

/// The ceilings to set now, so that even while they are on their way all VMs together never take
/// more than `capacity`: lowering is ordered at once, raising waits until what others give up is
/// confirmed. For a VM that cannot be held, nothing; the others get what it and its target leave.
[[nodiscard]] std::vector<std::optional<Bytes>> next_ceilings(std::span<const CeilingState> vms,
                                                              Bytes capacity);

}  // namespace fileballoon
