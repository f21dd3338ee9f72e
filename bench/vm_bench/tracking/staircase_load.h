// StaircaseLoad: the workload of the tracking scenario, driven from the host. Its working set goes
// up and down by known steps; it says itself how much it has in use at each moment, since memory
// takes time to be filled and to be given back. Each step is a fixed amount of work, so what a mode
// costs the workload shows in its completion time.
#pragma once

#include <boost/json/array.hpp>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/recorder.h"

namespace fileballoon::bench {

/// A working set, and passes over it.
struct Step {
  std::uint64_t mib = 0;
  std::uint64_t passes = 0;
};

/// Steps of the given sizes, each of a fixed number of passes that took about `seconds` under TCG
/// on the machine of docs/benchmarks.md.
[[nodiscard]] std::vector<Step> make_steps(const std::vector<std::uint64_t>& mib, double seconds);

/// When a working set that changes had which size, as the workload saw it.
struct InUse {
  double in_step_s = 0;
  double mib = 0;
};
/// The set in use `in_step_s` seconds into a step from `before_mib` to `after_mib`, as `points`
/// say: filling and giving back take the workload time. Linear between two of them, `after_mib`
/// after the last.
[[nodiscard]] double working_set_at(double in_step_s, double before_mib, double after_mib,
                                    const std::vector<InUse>& points);

class StaircaseLoad {
 public:
  struct Result {
    double seconds = 0;
    double longest_pass_s = 0;
    std::uint64_t errors = 0;         ///< pages that did not hold what they should
    boost::json::array pass_seconds;  ///< what is left of `seconds` went into changing the set
  };

  /// Mounts `disk`, which the guest has as /dev/vda. Throws std::runtime_error.
  StaircaseLoad(vmkit::Vm& vm, std::uint64_t largest_mib);
  /// The disk for steps like these: their hot file, and enough to be read once.
  [[nodiscard]] static std::unique_ptr<StaircaseDisk> make_disk(const std::vector<Step>& steps);

  /// Works through one step while `recorder` records it, and sets its working set right.
  Result run(const Step& step, Recorder& recorder);
  /// Ends the workload; all it had is free.
  void end();

 private:
  vmkit::Vm& vm_;
  double now_mib_ = 0;
};

}  // namespace fileballoon::bench
