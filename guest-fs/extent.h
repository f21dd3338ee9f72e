// Where balloon pages lie in the balloon file: page offsets as a type of their own, so that an
// offset in the file never meets a guest frame number. ExtentList is the queue of extents that may
// hold evictable balloon pages, oldest first. Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <deque>

#include "fileballoon/bytes.h"

namespace fileballoon::guest {

/// A page offset into the balloon file.
class FilePage {
 public:
  constexpr FilePage() = default;
  constexpr explicit FilePage(std::uint64_t index) : index_(index) {}
  [[nodiscard]] constexpr std::uint64_t index() const { return index_; }
  [[nodiscard]] constexpr std::uint64_t byte_offset() const { return index_ * kPageSize; }
  constexpr auto operator<=>(const FilePage&) const = default;
  friend constexpr FilePage operator+(FilePage p, std::uint64_t n) {
    return FilePage(p.index_ + n);
  }

 private:
  std::uint64_t index_ = 0;
};

/// `count` consecutive pages of the file.
struct Extent {
  FilePage first;
  std::uint64_t count = 0;

  [[nodiscard]] constexpr FilePage end() const { return first + count; }
  [[nodiscard]] constexpr Bytes size() const { return Bytes::pages(count); }
  constexpr bool operator==(const Extent&) const = default;
};

class ExtentList {
 public:
  [[nodiscard]] bool empty() const { return extents_.empty(); }
  [[nodiscard]] const std::deque<Extent>& extents() const { return extents_; }
  void clear() { extents_.clear(); }

  /// Adds at the young end; joins the last extent where it continues it.
  void push_back(Extent extent) {
    if (extent.count == 0) {
      return;
    }
    if (!extents_.empty() && extents_.back().end() == extent.first) {
      extents_.back().count += extent.count;
    } else {
      extents_.push_back(extent);
    }
  }
  /// Takes at most `most` pages from the old end; the list must not be empty.
  [[nodiscard]] Extent pop_front(std::uint64_t most) {
    Extent& front = extents_.front();
    const Extent taken{front.first, most < front.count ? most : front.count};
    front.first = taken.end();
    front.count -= taken.count;
    if (front.count == 0) {
      extents_.pop_front();
    }
    return taken;
  }

 private:
  std::deque<Extent> extents_;
};

}  // namespace fileballoon::guest
