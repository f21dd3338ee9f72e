// The parts of StaircaseLoad that need no guest.

#include <algorithm>
#include <cmath>

#include "bench/vm_bench/tracking/staircase_load.h"

namespace fileballoon::bench {

std::vector<Step> make_steps(const std::vector<std::uint64_t>& mib, double seconds) {
  // A pass costs about 0.11 s of other work and 0.43 ms a MiB under TCG.
  constexpr double kPassSeconds = 0.11;
  constexpr double kPassSecondsPerMib = 0.00043;
  std::vector<Step> steps;
  for (const std::uint64_t size : mib) {
    const double pass = kPassSeconds + kPassSecondsPerMib * static_cast<double>(size);
    steps.push_back({size, std::max<std::uint64_t>(1, std::llround(seconds / pass))});
  }
  return steps;
}

double working_set_at(double in_step_s, double before_mib, double after_mib,
                      const std::vector<InUse>& points) {
  InUse last{0, before_mib};
  for (const InUse& point : points) {
    if (in_step_s < point.in_step_s) {
      const double share = (in_step_s - last.in_step_s) / (point.in_step_s - last.in_step_s);
      return last.mib + share * (point.mib - last.mib);
    }
    last = point;
  }
  return after_mib;
}

}  // namespace fileballoon::bench
