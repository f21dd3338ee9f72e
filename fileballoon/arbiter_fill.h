// Weighted max-min division: the arithmetic under the arbiter. Every member gets its cap where the
// pool allows, else as much as a common level times its weight, so nobody's share can grow without
// taking from somebody who has less for its weight. Linear in members, allocates nothing.
#pragma once

#include <cstdint>
#include <span>

namespace fileballoon {

/// An amount of memory inside the arbiter; signed, so that a difference is one, too.
using Pages = std::int64_t;

/// Divides `pool` among `members` (indices into the arrays) by `weight`, none above its `cap`, and
/// adds each share to `out`. Members of weight 0 get what is left when all others have their cap.
/// Returns what remains: 0 where the caps together exceed the pool (a remainder of rounding, less
/// than a page a member, is kept back so that no later claimant gets it).
[[nodiscard]] Pages fill(std::span<const std::uint32_t> members, std::span<const Pages> cap,
                         std::span<const double> weight, Pages pool, std::span<Pages> out);

}  // namespace fileballoon
