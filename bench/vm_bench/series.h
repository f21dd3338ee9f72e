// Series: a guest's footprint over time beside the working set of what runs in it, as Recorder
// takes it. The statistics and the picture of a scenario are made of nothing else, so both can be
// made again from a result file. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <vector>

namespace fileballoon::bench {

struct Sample {
  double time_s = 0;
  double working_set_mib = 0;  ///< what the workload uses at this moment, by its own account
  double footprint_mib = 0;    ///< host memory behind the guest's RAM
  double in_step_s = 0;        ///< since the working set was last told to change
  std::size_t step = 0;        ///< 0 before the workload; each order counts on
};
using Series = std::vector<Sample>;

/// As columns, {"time_s": […], …}, rounded to what matters, and back. from_json() throws
/// std::exception where the object is none of to_json().
[[nodiscard]] boost::json::object to_json(const Series& series);
[[nodiscard]] Series series_from_json(const boost::json::object& columns);

}  // namespace fileballoon::bench
