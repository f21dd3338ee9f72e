#include "fileballoon/arbiter_fill.h"

#include <algorithm>
#include <cmath>

namespace fileballoon {
namespace {

/// The level L with sum(min(cap, L * weight)) = pool, for members with a weight. The sum is concave
/// in L, so each step towards it stays below the solution and stops growing after a few rounds.
double level_for(std::span<const std::uint32_t> members, std::span<const Pages> cap,
                 std::span<const double> weight, double pool) {
  double level = 0;
  // Bounded for safety; 10,000 random members need fewer than ten rounds.
  for (int round = 0; round < 64; ++round) {
    double capped = 0;
    double open_weight = 0;
    for (const std::uint32_t i : members) {
      const bool is_capped = static_cast<double>(cap[i]) <= level * weight[i];
      capped += is_capped && weight[i] > 0 ? static_cast<double>(cap[i]) : 0.0;
      open_weight += is_capped ? 0.0 : weight[i];
    }
    if (open_weight <= 0) {
      break;
    }
    const double next = (pool - capped) / open_weight;
    if (!(next > level * (1 + 1e-12))) {
      break;
    }
    level = next;
  }
  return level;
}

}  // namespace

Pages fill(std::span<const std::uint32_t> members, std::span<const Pages> cap,
           std::span<const double> weight, Pages pool, std::span<Pages> out) {
  Pages weighted = 0;
  Pages weightless = 0;
  for (const std::uint32_t i : members) {
    (weight[i] > 0 ? weighted : weightless) += cap[i];
  }
  if (weighted + weightless <= pool) {
    for (const std::uint32_t i : members) {
      out[i] += cap[i];
    }
    return pool - weighted - weightless;
  }
  if (pool <= 0) {
    return 0;
  }
  if (weighted > pool) {
    const double level = level_for(members, cap, weight, static_cast<double>(pool));
    Pages left = pool;
    for (const std::uint32_t i : members) {
      const auto share = static_cast<Pages>(std::floor(level * weight[i]));
      const Pages given = std::min({share, cap[i], left});
      out[i] += given;
      left -= given;
    }
    return 0;
  }
  // The weighted have all they want; the others share the rest as equals.
  const double part = static_cast<double>(pool - weighted) / static_cast<double>(weightless);
  for (const std::uint32_t i : members) {
    out[i] += weight[i] > 0 ? cap[i] : static_cast<Pages>(static_cast<double>(cap[i]) * part);
  }
  return 0;
}

}  // namespace fileballoon
