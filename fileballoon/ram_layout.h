// RamLayout: where guest-physical RAM lies in its host backing. A machine with a PCI hole has
// several segments (on q35, RAM above 2 or 2.75 GiB moves to 4 GiB), so guest-physical addresses
// are not offsets. Built from QMP by the daemon; every frame a guest names goes through
// translate(), which is the check that it is RAM at all. Immutable after construction.
#pragma once

#include <string>
#include <vector>

#include "fileballoon/frame.h"

namespace fileballoon {

/// One run of RAM: guest frames [first, first+count) lie at `offset` in backing `backing`.
struct RamSegment {
  FrameRange frames;
  HostOffset offset;
  /// Index of the backing (a VM may have several memory backends, one per NUMA node).
  std::uint32_t backing = 0;
  bool operator==(const RamSegment&) const = default;
};

/// A piece of one backing.
struct BackingRange {
  std::uint32_t backing = 0;
  HostRange range;
  bool operator==(const BackingRange&) const = default;
};

class RamLayout {
 public:
  RamLayout() = default;

  /// Segments in any order. Fails where two overlap in guest-physical space, overlap in a backing,
  /// are empty, or wrap around.
  [[nodiscard]] static Result<RamLayout> create(std::vector<RamSegment> segments);

  /// Appends the pieces of `frames` in their backings to `out`, ascending by frame, one piece per
  /// segment touched. Returns false, with `out` as it was, where any part of `frames` is not RAM.
  [[nodiscard]] bool translate(FrameRange frames, std::vector<BackingRange>& out) const;

  [[nodiscard]] const std::vector<RamSegment>& segments() const { return segments_; }
  /// All RAM.
  [[nodiscard]] Bytes total() const;
  /// One past the highest frame.
  [[nodiscard]] GuestFrame end() const;

 private:
  std::vector<RamSegment> segments_;  // ascending by frame
};

}  // namespace fileballoon
