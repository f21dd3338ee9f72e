// ColdPages: which pages to page out next: the coldest ones. Neighbours go together, a piece of 2
// MiB at a time, so that they lie in neighbouring slots and come back together; among pieces that
// are equally cold the order is another one each round. In address order, a guest that reads all of
// its memory once would find that just what comes next was paged out to make room. It only reads
// the age and frame maps; a wrong choice costs time, never data. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "uffd/pager/pager.h"

namespace fileballoon {

class ColdPages {
 public:
  explicit ColdPages(Pager& pager);

  /// Starts a round that wants `wanted` pages: picks the highest age at which that many backed
  /// pages are as old or older, but none below `min_age`. Returns how many pages that gives.
  std::uint64_t start(std::uint64_t wanted, unsigned min_age);

  /// Back to the start of the round.
  void rewind() {
    visited_ = 0;
    page_ = 0;
  }

  struct Batch {
    std::uint32_t object = 0;
    std::vector<std::uint64_t> pages;  ///< ascending, all in one 2 MiB piece; empty: round is over
  };
  /// The next up to `limit` pages. `batch` is reused.
  void next(std::size_t limit, Batch& batch);

  [[nodiscard]] unsigned age() const { return age_; }

  struct Piece {
    std::uint32_t object = 0;
    std::uint64_t first = 0;  // page
    std::uint64_t end = 0;
    [[nodiscard]] HostRange range() const {
      return {HostOffset(first * kPageSize), Bytes::pages(end - first)};
    }
  };
  /// For who looks at memory piece by piece, as the hand of a clock: the number of the next one, in
  /// an order that comes to each once before it begins anew, whatever rounds do meanwhile.
  std::uint64_t turn();
  [[nodiscard]] const Piece& at(std::uint64_t number) const { return pieces_[number]; }
  /// Of `piece` all backed pages of at least this age. `batch` is reused.
  void collect(const Piece& piece, unsigned min_age, Batch& batch);
  [[nodiscard]] std::uint64_t pieces() const { return pieces_.size(); }

 private:
  Pager& pager_;
  [[nodiscard]] const Piece& piece(std::uint64_t visited) const {
    return pieces_[(offset_ + visited * stride_) % pieces_.size()];
  }

  /// Adds backed pages of at least `min_age`, from `page` on; where it stopped: at the end of the
  /// piece, or at the page for which the batch had no room.
  std::uint64_t gather(const Piece& piece, std::uint64_t page, unsigned min_age, std::size_t limit,
                       Batch& batch) const;

  unsigned age_ = AgeMap::kOldest;
  std::vector<Piece> pieces_;  // all there are
  std::uint64_t stride_ = 1;   // without a common divisor with their number: visits each once
  std::uint64_t offset_ = 0;   // of this round
  std::uint64_t visited_ = 0;  // pieces that this round has left behind
  std::uint64_t page_ = 0;     // in the piece at hand, from its first
  std::uint64_t turned_ = 0;   // where the hand stands
};

}  // namespace fileballoon
