// Frames and offsets as types: a guest frame number never meets a byte offset by accident.
// GuestFrame counts base pages of guest-physical memory, HostOffset counts bytes into a RAM
// backing; only RamLayout turns one into the other. Pure; thread-safe.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon {

/// A guest page frame number: guest-physical address divided by kPageSize.
class GuestFrame {
 public:
  constexpr GuestFrame() = default;
  constexpr explicit GuestFrame(std::uint64_t number) : number_(number) {}
  [[nodiscard]] constexpr std::uint64_t number() const { return number_; }
  constexpr auto operator<=>(const GuestFrame&) const = default;
  friend constexpr GuestFrame operator+(GuestFrame f, std::uint64_t n) {
    return GuestFrame(f.number_ + n);
  }
  /// Distance in frames; `a` must not be below `b`.
  friend constexpr std::uint64_t operator-(GuestFrame a, GuestFrame b) {
    return a.number_ - b.number_;
  }

 private:
  std::uint64_t number_ = 0;
};

/// A byte offset into the file or mapping that backs guest RAM.
class HostOffset {
 public:
  constexpr HostOffset() = default;
  constexpr explicit HostOffset(std::uint64_t bytes) : bytes_(bytes) {}
  [[nodiscard]] constexpr std::uint64_t bytes() const { return bytes_; }
  constexpr auto operator<=>(const HostOffset&) const = default;
  friend constexpr HostOffset operator+(HostOffset o, Bytes n) {
    return HostOffset(o.bytes_ + n.count());
  }

 private:
  std::uint64_t bytes_ = 0;
};

/// `count` consecutive guest frames from `first`.
struct FrameRange {
  GuestFrame first;
  std::uint64_t count = 0;

  [[nodiscard]] constexpr GuestFrame end() const { return first + count; }
  [[nodiscard]] constexpr Bytes size() const { return Bytes::pages(count); }
  constexpr bool operator==(const FrameRange&) const = default;
};

/// `size` consecutive bytes of a RAM backing from `start`; page aligned in this project.
struct HostRange {
  HostOffset start;
  Bytes size;

  [[nodiscard]] constexpr HostOffset end() const { return start + size; }
  [[nodiscard]] constexpr std::uint64_t pages() const { return size.whole_pages(); }
  constexpr bool operator==(const HostRange&) const = default;
};

/// Sorts `frames` in place and returns them as the fewest ascending, disjoint ranges, appended to
/// `out` (cleared first; its capacity is reused, so a warmed-up caller does not allocate).
/// Duplicates collapse.
void coalesce(std::span<GuestFrame> frames, std::vector<FrameRange>& out);

/// Sum of the counts.
[[nodiscard]] std::uint64_t total_frames(std::span<const FrameRange> ranges);

}  // namespace fileballoon
