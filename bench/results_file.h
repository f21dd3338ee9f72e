// ResultsFile: what a benchmark wrote with --json, read again, so that a long benchmark can be run
// in parts and its table made of all of them. Errors name the file and what is wrong with it.
#pragma once

#include <string>
#include <vector>

#include "bench/report.h"

namespace fileballoon::bench {

struct ResultsFile {
  std::string benchmark;
  std::string scenario;
  Machine machine;
  std::vector<Row> samples;  ///< single measurements, in the order they were taken
};

/// Throws std::runtime_error.
[[nodiscard]] ResultsFile read_results(const std::string& path);

/// All of `paths` as one. Throws std::runtime_error where they are not of the same benchmark and
/// scenario, or not of the same accelerator, kernels and QEMU: such numbers have no table in
/// common.
[[nodiscard]] ResultsFile read_all_results(const std::vector<std::string>& paths);

}  // namespace fileballoon::bench
