// Repetitions of a measurement become one row each. Pure.
#pragma once

#include <vector>

#include "bench/report.h"

namespace fileballoon::bench {

/// Rows of several repetitions become one for each (`mode`, `memory`), in order of first
/// appearance: medians of numbers (nulls left out), the first of anything else; for `oom_kills` and
/// `pattern_errors` the worst. `run` goes, `runs` comes; arrays and objects (a series) stay with
/// the single measurements.
[[nodiscard]] std::vector<Row> merge_runs(const std::vector<Row>& rows);

}  // namespace fileballoon::bench
