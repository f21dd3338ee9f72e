// LiveTable: the demo's table. On a terminal the present line is redrawn in place as numbers change
// and stays when its phase ends; into a pipe or file only the lines that stay are written.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>

#include "fileballoon/bytes.h"

namespace fileballoon::bench {

struct LiveSample {
  double time_s = 0;  ///< since the demo began
  std::string phase;
  Bytes guest_free;
  Bytes guest_available;
  Bytes guest_cache;
  Bytes balloon_target;
  Bytes balloon_resident;
  Bytes host_footprint;
};

class LiveTable {
 public:
  /// `ram`: what a full bar stands for. `redraw`: whether `out` is a terminal.
  LiveTable(std::ostream& out, Bytes ram, bool redraw) : out_(out), ram_(ram), redraw_(redraw) {}

  void print_header();
  /// Shows a line that may still change.
  void update(const LiveSample& sample);
  /// Shows a line that stays.
  void commit(const LiveSample& sample);

 private:
  [[nodiscard]] std::string line(const LiveSample& sample) const;
  std::ostream& out_;
  Bytes ram_;
  bool redraw_;
};

}  // namespace fileballoon::bench
