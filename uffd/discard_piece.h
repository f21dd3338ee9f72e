// The verify-discard-verify step that every discarder does on one piece of memory, and the ways to
// do it on the kinds of memory there are. Callers hold the range's lock; where a userfaultfd is
// held they have write-protected the piece before.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>

#include "uffd/discard.h"
#include "uffd/zero_check.h"

namespace fileballoon {

/// A shared memory object (memfd, tmpfs file), by its descriptor.
class ShmemPages {
 public:
  explicit ShmemPages(int fd) : fd_(fd) {}
  void look(HostRange range, ZeroMap& map) const { fileballoon::look(fd_, range, map); }
  [[nodiscard]] std::uint32_t backed(HostRange range) const { return backed_pages(fd_, range); }
  /// Runs take along what looks like a hole: it costs next to nothing.
  [[nodiscard]] bool discards(std::size_t) const { return true; }
  [[nodiscard]] bool lazy() const { return false; }
  /// fallocate(PUNCH_HOLE). Its result is not the proof, so none is returned: a punch inside a
  /// shmem huge page that cannot be split returns 0 and frees nothing.
  void discard(HostRange range) const;

 private:
  int fd_;
};

/// How memory of our own process is given back.
enum class LocalDiscard {
  dont_need,  ///< MADV_DONTNEED: private anonymous memory, freed at once
  free,       ///< MADV_FREE: private anonymous memory, freed when the host needs it
  remove,     ///< MADV_REMOVE: a shared mapping, freed in the object at once
};

/// Private anonymous memory of this very process, from `base`. Before the piece is armed, its
/// present pages are noted by snapshot(): only those are read and discarded later. (Reading an
/// absent page would be a fault of our own, and a page that appears after the snapshot was not
/// verified. Once armed, an absent page carries a marker that /proc/self/pagemap cannot tell from a
/// swap entry.)
class LocalPages {
 public:
  /// `pagemap`: /proc/self/pagemap, opened for reading.
  LocalPages(std::byte* base, int pagemap, LocalDiscard method)
      : base_(base), pagemap_(pagemap), method_(method) {}
  /// `skip`: pages handed to MADV_FREE before: the kernel may take them while they are looked at.
  void snapshot(HostRange range, const std::bitset<ZeroMap::kMaxPages>& skip);
  void look(HostRange range, ZeroMap& map) const;
  /// Of the pages that were present at the snapshot: those that are now.
  [[nodiscard]] std::uint32_t backed(HostRange range) const;
  [[nodiscard]] bool discards(std::size_t page) const { return present_.test(page); }
  void discard(HostRange range) const;
  /// MADV_FREE leaves the memory where it is until the host needs it: nothing can be verified.
  [[nodiscard]] bool lazy() const { return method_ == LocalDiscard::free; }

 private:
  void read_pagemap(HostRange range, std::bitset<ZeroMap::kMaxPages>& present) const;

  std::byte* base_;
  int pagemap_;
  LocalDiscard method_;
  HostOffset start_;  // of the piece of the snapshot
  std::bitset<ZeroMap::kMaxPages> present_;
};

/// Verifies, discards runs of zero pages with one call each, and looks again. `discarded(first,
/// count)` is told of every run that really has no memory behind it now (lazy: that was handed to
/// the kernel).
template <class Pages, class Discarded>
DiscardOutcome discard_piece(const Pages& memory, HostRange range, Discarded&& discarded) {
  DiscardOutcome outcome;
  ZeroMap map;
  memory.look(range, map);
  const std::uint64_t base = range.start.bytes() / kPageSize;
  const auto at = [&](std::size_t page, std::size_t count) {
    return HostRange{range.start + Bytes::pages(page), Bytes::pages(count)};
  };
  const auto count_gone = [&](std::size_t page, std::size_t count) {
    outcome.discarded += static_cast<std::uint32_t>(count);
    discarded(base + page, count);
  };
  for (std::size_t page = 0; page < range.pages();) {
    if (!map.zero.test(page)) {
      ++(map.bad.test(page) ? outcome.failed : outcome.not_zero);
      ++page;
      continue;
    }
    const bool present = memory.discards(page);
    std::size_t count = 1;
    while (page + count < range.pages() && map.zero.test(page + count) &&
           memory.discards(page + count) == present) {
      ++count;
    }
    if (!present) {
      count_gone(page, count);
      page += count;
      continue;
    }
    const std::uint32_t before = memory.backed(at(page, count));
    memory.discard(at(page, count));
    const std::uint32_t after = memory.lazy() ? 0 : memory.backed(at(page, count));
    outcome.freed += before > after ? before - after : 0;
    if (after == 0) {
      count_gone(page, count);
    } else {
      // A huge page that did not split, or the guest was quick to take some back: page by page.
      for (std::size_t i = page; i < page + count; ++i) {
        if (memory.backed(at(i, 1)) == 0) {
          count_gone(i, 1);
        } else {
          ++outcome.failed;
        }
      }
    }
    page += count;
  }
  return outcome;
}

/// The same for a caller that keeps no book.
template <class Pages>
DiscardOutcome discard_piece(const Pages& memory, HostRange range) {
  return discard_piece(memory, range, [](std::uint64_t, std::uint64_t) {});
}

/// `range` without what lies beyond `limit`; pages beyond are added to outcome.failed.
[[nodiscard]] HostRange clip(HostRange range, Bytes limit, DiscardOutcome& outcome);

}  // namespace fileballoon
