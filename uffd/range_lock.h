// RangeLocks: one lock per 2 MiB of RAM, the lock that every discard and every fill of a range is
// done under ("one owner"). Striped over a fixed table, so it takes no memory per VM size and
// allocates nothing. Lock order: a holder takes exactly one stripe at a time and calls nothing that
// takes another; callers with longer ranges go piece by piece (for_each_piece).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>

#include "fileballoon/frame.h"

namespace fileballoon {

class RangeLocks {
 public:
  /// Bytes under one lock. 2 MiB is far past the size where a punch call's fixed cost matters
  /// (3.2 us a call against 0.56 us a page), and equals a transparent huge page.
  static constexpr Bytes kPiece = Bytes::mib(2);

  /// The lock of the piece that holds `at` in `backing`.
  [[nodiscard]] std::mutex& of(std::uint32_t backing, HostOffset at) {
    const std::uint64_t piece = at.bytes() / kPiece.count();
    return locks_[(piece + backing * 31ULL) % locks_.size()].mutex;
  }

  /// Calls `visit(HostRange)` for each part of `range` that lies in one piece, with its lock held.
  template <class Visit>
  void for_each_piece(std::uint32_t backing, HostRange range, Visit&& visit) {
    HostOffset at = range.start;
    while (at < range.end()) {
      const std::uint64_t next = (at.bytes() / kPiece.count() + 1) * kPiece.count();
      const HostOffset end = std::min(HostOffset(next), range.end());
      const std::lock_guard guard(of(backing, at));
      visit(HostRange{at, Bytes(end.bytes() - at.bytes())});
      at = end;
    }
  }

 private:
  struct alignas(64) Slot {  // a cache line each: neighbours do not bounce
    std::mutex mutex;
  };
  std::array<Slot, 64> locks_;
};

}  // namespace fileballoon
