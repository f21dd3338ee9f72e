// ColdPages: which pages to page out next: the coldest ones, in address order, so that neighbours
// go to neighbouring slots and come back together. It only reads the age and frame maps; a wrong
// choice costs time, never data. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "uffd/pager/pager.h"

namespace fileballoon {

class ColdPages {
 public:
  explicit ColdPages(Pager& pager) : pager_(pager) {}

  /// Starts a round that wants `wanted` pages: picks the highest age at which that many backed
  /// pages are as old or older, but none below `min_age`. Returns how many pages that gives.
  std::uint64_t start(std::uint64_t wanted, unsigned min_age);

  /// Back to the start of the round.
  void rewind() {
    object_ = 0;
    page_ = 0;
  }

  struct Batch {
    std::uint32_t object = 0;
    std::vector<std::uint64_t> pages;  ///< ascending, all in one 2 MiB piece; empty: round is over
  };
  /// The next up to `limit` pages. `batch` is reused.
  void next(std::size_t limit, Batch& batch);

  [[nodiscard]] unsigned age() const { return age_; }

 private:
  Pager& pager_;
  unsigned age_ = AgeMap::kOldest;
  std::uint32_t object_ = 0;
  std::uint64_t page_ = 0;
};

}  // namespace fileballoon
