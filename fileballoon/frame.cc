#include "fileballoon/frame.h"

#include <algorithm>

namespace fileballoon {

void coalesce(std::span<GuestFrame> frames, std::vector<FrameRange>& out) {
  out.clear();
  std::sort(frames.begin(), frames.end());
  for (const GuestFrame frame : frames) {
    if (!out.empty() && frame < out.back().end()) {
      continue;  // duplicate
    }
    if (!out.empty() && frame == out.back().end()) {
      ++out.back().count;
    } else {
      out.push_back({frame, 1});
    }
  }
}

std::uint64_t total_frames(std::span<const FrameRange> ranges) {
  std::uint64_t sum = 0;
  for (const FrameRange& range : ranges) {
    sum += range.count;
  }
  return sum;
}

}  // namespace fileballoon
