// Scenario: one kind of measurement in a real guest. A scenario measures one mode in one variant in
// one fresh guest and returns one row; vm_bench decides the order (modes interleaved, so that a
// busy minute of the machine does not fall on one of them), repeats, and merges. A new scenario is
// a new file and a line in scenarios().
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bench/report.h"
#include "fileballoon/bytes.h"

namespace fileballoon::bench {

struct Settings {
  Bytes memory = Bytes::gib(1);     ///< of the guest
  Bytes balloon = Bytes::mib(600);  ///< target of the balloon
  Bytes fill = Bytes::mib(500);     ///< what the workload fills
  unsigned cpus = 2;                ///< of the guest
  /// Working sets of the staircase, MiB, and how long a step is meant to take (tracking).
  std::vector<std::uint64_t> steps{100, 300, 500, 700, 500, 300, 100};
  double step_seconds = 12;
  Bytes limit = Bytes::gib(2);  ///< of the host (overcommit)
  /// Of a job over its hot part: with 40, some 4 to 15 s under TCG, so that jobs overlap
  /// (overcommit).
  std::uint64_t passes = 40;
};

class Scenario {
 public:
  virtual ~Scenario() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::string summary() const = 0;  ///< one line for --help
  /// Columns of the terminal's table, in order.
  [[nodiscard]] virtual std::vector<std::string> columns() const = 0;
  /// Modes that apply.
  [[nodiscard]] virtual std::vector<std::string> modes() const = 0;
  /// Variants beside the mode ("touched", "untouched"); one empty name where there is none.
  [[nodiscard]] virtual std::vector<std::string> variants(const std::string& mode) const {
    (void)mode;
    return {""};
  }
  /// Measures once, in a guest of its own. Throws std::exception where the measurement fails.
  [[nodiscard]] virtual Row measure(const std::string& mode, const std::string& variant,
                                    const Settings& settings) = 0;
  /// Adds fields that compare the rows of one repetition, or of merged results, with each other.
  virtual void relate(std::vector<Row>& rows) const { (void)rows; }
  /// Writes `path`.svg and `path`.png from single measurements; no picture where there is none to
  /// make.
  virtual void draw(const std::vector<Row>& samples, const std::string& path) const {
    (void)samples;
    (void)path;
  }
};

[[nodiscard]] const std::vector<Scenario*>& scenarios();

/// Sets `ratio` of each row to its `field` over that of mode "none"; leaves the rows alone where
/// that mode is not among them.
void relate_to_none(std::vector<Row>& rows, std::string_view field, std::string_view ratio);

/// Each defined in the file of its name.
[[nodiscard]] Scenario& inflate_scenario();
[[nodiscard]] Scenario& pressure_scenario();
[[nodiscard]] Scenario& tracking_scenario();
[[nodiscard]] Scenario& build_scenario();
[[nodiscard]] Scenario& interference_scenario();
[[nodiscard]] Scenario& rest_scenario();
[[nodiscard]] Scenario& overcommit_scenario();

}  // namespace fileballoon::bench
