// FrameMap: what the host believes of every page of a RAM backing, two bits a page. The fault path
// reads and writes it without a lock; a word is changed by compare-and-swap, so writers of
// neighbouring pages do not disturb each other. Truth is the kernel (SEEK_DATA, mincore): the map
// only steers where to look, and a wrong entry costs time, never data.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "fileballoon/bytes.h"

namespace fileballoon {

enum class FrameState : std::uint8_t {
  backed = 0,   ///< memory is (or may be) behind the page; the initial state
  absent = 1,   ///< discarded as zero: a refault is answered with a zero page
  paged = 2,    ///< its content lies in a store: a refault needs that content
  guarded = 3,  ///< write-protected while it is being looked at or written out
};

class FrameMap {
 public:
  /// All pages start as `backed`. Takes two bits a page, rounded up to 8 bytes.
  explicit FrameMap(std::uint64_t pages);

  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  [[nodiscard]] Bytes memory() const;

  /// `page` must be below pages().
  [[nodiscard]] FrameState state(std::uint64_t page) const;
  /// Sets [first, first+count), clipped to the map.
  void set(std::uint64_t first, std::uint64_t count, FrameState state);
  /// Changes one page if it is still `expected`; says whether it did.
  [[nodiscard]] bool change(std::uint64_t page, FrameState expected, FrameState desired);

  /// Length of the run of pages in `state` that starts at `first`, at most `limit`.
  [[nodiscard]] std::uint64_t run(std::uint64_t first, std::uint64_t limit, FrameState state) const;
  /// Pages in `state`; walks the map (1 GiB of RAM: about 8,000 words).
  [[nodiscard]] std::uint64_t count(FrameState state) const;

 private:
  static constexpr std::uint64_t kPagesPerWord = 32;

  std::uint64_t pages_;
  std::uint64_t words_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> map_;
};

}  // namespace fileballoon
