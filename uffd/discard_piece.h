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
  void look_backed(HostRange range, ZeroMap& map) const {
    fileballoon::look_backed(fd_, range, map);
  }
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
  void look_backed(HostRange range, ZeroMap& map) const;
  void discard(HostRange range) const;
  /// MADV_FREE leaves the memory where it is until the host needs it: nothing can be verified.
  [[nodiscard]] bool lazy() const { return method_ == LocalDiscard::free; }

 private:
  void read_pagemap(HostRange range, std::bitset<ZeroMap::kMaxPages>& present) const;

  std::byte* base_;
  int pagemap_;
  LocalDiscard method_;
  std::bitset<ZeroMap::kMaxPages> present_;
};

[[nodiscard]] inline bool is_lazy(const ShmemPages&) { return false; }
[[nodiscard]] inline bool is_lazy(const LocalPages& pages) { return pages.lazy(); }
/// Whether runs take along what looks like holes. Pages of a shared object that were allocated by
/// fallocate(2) and never touched look like holes to SEEK_DATA (mm/filemap.c,
/// folio_seek_hole_data) and are memory.
[[nodiscard]] inline bool discards_holes(const ShmemPages&) { return true; }
[[nodiscard]] inline bool discards_holes(const LocalPages&) { return false; }

/// Verifies, discards runs of zero pages with one call each, and looks again. `discarded(first,
/// count)` is told of every run that really has no memory behind it now (lazy: that was handed to
/// the kernel).
template <class Pages, class Discarded>
DiscardOutcome discard_piece(const Pages& memory, HostRange range, Discarded&& discarded) {
  DiscardOutcome outcome;
  ZeroMap before;
  memory.look(range, before);
  const std::size_t pages = range.pages();
  for (std::size_t page = 0; page < pages;) {
    if (!before.zero.test(page)) {
      ++(before.bad.test(page) ? outcome.failed : outcome.not_zero);
    }
    std::size_t count = 0;
    while (page + count < pages && before.zero.test(page + count) &&
           (discards_holes(memory) || before.backed.test(page + count))) {
      ++count;
    }
    if (count == 0) {
      ++page;
      continue;
    }
    memory.discard({range.start + Bytes::pages(page), Bytes::pages(count)});
    page += count;
  }
  ZeroMap after;
  if (is_lazy(memory)) {
    after.backed.reset();
  } else {
    memory.look_backed(range, after);
  }
  for (std::size_t page = 0; page < pages;) {
    if (!before.zero.test(page)) {
      ++page;
      continue;
    }
    if (after.backed.test(page)) {
      ++outcome.failed;
      ++page;
      continue;
    }
    const std::size_t first = page;
    while (page < pages && before.zero.test(page) && !after.backed.test(page)) {
      outcome.freed += before.backed.test(page) ? 1 : 0;
      ++page;
    }
    outcome.discarded += static_cast<std::uint32_t>(page - first);
    discarded(range.start.bytes() / kPageSize + first, page - first);
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
