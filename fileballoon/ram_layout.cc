#include "fileballoon/ram_layout.h"

#include <algorithm>
#include <limits>

namespace fileballoon {

Result<RamLayout> RamLayout::create(std::vector<RamSegment> segments) {
  constexpr std::uint64_t kMaxFrames = std::numeric_limits<std::uint64_t>::max() / kPageSize;
  for (const RamSegment& s : segments) {
    if (s.frames.count == 0) {
      return Error{"guest RAM has an empty segment"};
    }
    if (s.frames.count > kMaxFrames || s.frames.first.number() > kMaxFrames - s.frames.count ||
        s.offset.bytes() > std::numeric_limits<std::uint64_t>::max() - s.frames.size().count()) {
      return Error{"guest RAM has a segment that wraps around the address space"};
    }
    if (s.offset.bytes() % kPageSize != 0) {
      return Error{"guest RAM has a segment that is not page aligned in its backing"};
    }
  }
  std::sort(segments.begin(), segments.end(), [](const RamSegment& a, const RamSegment& b) {
    return a.backing != b.backing ? a.backing < b.backing : a.offset < b.offset;
  });
  for (std::size_t i = 1; i < segments.size(); ++i) {
    const RamSegment& previous = segments[i - 1];
    if (previous.backing == segments[i].backing &&
        segments[i].offset < previous.offset + previous.frames.size()) {
      return Error{"guest RAM segments overlap in the backing"};
    }
  }
  std::sort(segments.begin(), segments.end(), [](const RamSegment& a, const RamSegment& b) {
    return a.frames.first < b.frames.first;
  });
  RamLayout layout;
  for (const RamSegment& s : segments) {
    if (!layout.segments_.empty()) {
      RamSegment& last = layout.segments_.back();
      if (s.frames.first < last.frames.end()) {
        return Error{"guest RAM segments overlap in guest-physical space"};
      }
      if (s.frames.first == last.frames.end() && s.backing == last.backing &&
          s.offset == last.offset + last.frames.size()) {
        last.frames.count += s.frames.count;
        continue;
      }
    }
    layout.segments_.push_back(s);
  }
  return layout;
}

bool RamLayout::translate(FrameRange frames, std::vector<BackingRange>& out) const {
  const std::size_t before = out.size();
  // Never adds to what the guest sent before it is known to be small: its numbers may be anything
  // up to 2^64.
  auto segment = std::upper_bound(
      segments_.begin(), segments_.end(), frames.first,
      [](GuestFrame frame, const RamSegment& s) { return frame < s.frames.first; });
  if (segment == segments_.begin() || frames.count == 0) {
    return false;
  }
  --segment;
  while (frames.count > 0) {
    if (segment == segments_.end() || frames.first < segment->frames.first ||
        frames.first >= segment->frames.end()) {
      out.resize(before);
      return false;
    }
    const std::uint64_t skip = frames.first - segment->frames.first;
    const std::uint64_t take = std::min(frames.count, segment->frames.count - skip);
    out.push_back({segment->backing, {segment->offset + Bytes::pages(skip), Bytes::pages(take)}});
    frames.first = frames.first + take;
    frames.count -= take;
    ++segment;
  }
  return true;
}

Bytes RamLayout::total() const {
  Bytes sum;
  for (const RamSegment& s : segments_) {
    sum += s.frames.size();
  }
  return sum;
}

GuestFrame RamLayout::end() const {
  return segments_.empty() ? GuestFrame(0) : segments_.back().frames.end();
}

}  // namespace fileballoon
