// Statistics of a series: how closely a footprint follows a working set, and what it adds up to.
// Pure; the definitions are those of docs/testing.md.
#pragma once

#include "bench/vm_bench/series.h"

namespace fileballoon::bench {

/// Footprint of the guest at rest, before the workload: mean of the samples of step 0 in its last
/// `window_s` seconds. 0 for a series without a step 0.
[[nodiscard]] double idle_footprint(const Series& series, double window_s);

struct Line {
  double slope = 0;  ///< MiB of footprint per MiB of working set
  double r2 = 0;     ///< share of the footprint's variance that the line explains
};
/// Least squares of footprint over working set, of the samples at least `after_s` into their step.
/// Zeros where either does not vary.
[[nodiscard]] Line fit(const Series& series, double after_s);

/// Mean of what the footprint is above `idle_mib` plus the working set (never below 0), from the
/// first step of the workload to the end.
[[nodiscard]] double mean_excess(const Series& series, double idle_mib);

/// Integral of the footprint from the first step of the workload to the end, GiB·s.
[[nodiscard]] double area_gib_s(const Series& series);

/// The largest footprint since the first step of the workload, MiB.
[[nodiscard]] double peak_footprint(const Series& series);

/// Seconds from each step down, in order, to the first sample that is at most `near_mib` above
/// `idle_mib` plus the working set; a step that never gets there counts with its whole length.
[[nodiscard]] std::vector<double> settle_times(const Series& series, double idle_mib,
                                               double near_mib);

}  // namespace fileballoon::bench
