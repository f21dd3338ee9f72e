// Picture of the tracking scenario: one panel a mode, footprint against time, with the working set
// as a line and an area. Drawn by gnuplot from values alone, so that a picture can be made again
// from result files.
#pragma once

#include <string>
#include <vector>

#include "bench/vm_bench/series.h"

namespace fileballoon::bench {

struct Panel {
  std::string title;
  std::string note;  ///< a line under the title
  double idle_mib = 0;
  Series series;
};

/// Writes `path`.svg and `path`.png. Throws std::runtime_error with what gnuplot said.
void draw_panels(const std::string& path, const std::string& title,
                 const std::vector<Panel>& panels);

}  // namespace fileballoon::bench
