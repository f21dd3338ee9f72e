// Limits of one balloon: the target is its upper limit, the floor the part below it that is locked.
#pragma once

#include "fileballoon/bytes.h"

namespace fileballoon {

struct Limits {
  Bytes target;
  Bytes floor;
  bool operator==(const Limits&) const = default;
};

/// Checks limits against the guest's RAM: 0 <= floor <= target <= ram. The error names the numbers.
[[nodiscard]] Result<Limits> make_limits(Bytes target, Bytes floor, Bytes ram);

/// The balloon target that leaves a VM of size `ram` with the footprint that an operator asked for
/// (`mem-set` states a footprint, as `xl mem-set` does).
[[nodiscard]] constexpr Bytes target_for_footprint(Bytes ram, Bytes footprint) {
  return (ram - footprint).page_floor();
}

}  // namespace fileballoon
