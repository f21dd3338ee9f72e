#include "uffd/discard_piece.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace fileballoon {

void ShmemPages::discard(HostRange range) const {
  (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(range.start.bytes()),
                    static_cast<off_t>(range.size.count()));
}

void LocalPages::read_pagemap(HostRange range, std::bitset<ZeroMap::kMaxPages>& present) const {
  constexpr std::uint64_t kPresentOrSwapped = 3ULL << 62;  // proc(5), pagemap bits 63 and 62
  std::array<std::uint64_t, ZeroMap::kMaxPages> entries;
  const std::size_t pages = range.pages();
  const std::uint64_t first =
      (reinterpret_cast<std::uintptr_t>(base_) + range.start.bytes()) / kPageSize;
  const auto wanted = static_cast<ssize_t>(pages * sizeof entries[0]);
  present.reset();
  if (::pread(pagemap_, entries.data(), static_cast<std::size_t>(wanted),
              static_cast<off_t>(first * sizeof entries[0])) != wanted) {
    return;
  }
  for (std::size_t i = 0; i < pages; ++i) {
    present.set(i, (entries[i] & kPresentOrSwapped) != 0);
  }
}

void LocalPages::snapshot(HostRange range, const std::bitset<ZeroMap::kMaxPages>& skip) {
  start_ = range.start;
  read_pagemap(range, present_);
  present_ &= ~skip;
}

void LocalPages::look(HostRange range, ZeroMap& map) const {
  map.zero.set();
  map.bad.reset();
  for (std::size_t i = 0; i < range.pages(); ++i) {
    if (present_.test(i) && !is_zero(base_ + range.start.bytes() + i * kPageSize, kPageSize)) {
      map.zero.reset(i);
    }
  }
}

std::uint32_t LocalPages::backed(HostRange range) const {
  std::bitset<ZeroMap::kMaxPages> now;
  read_pagemap(range, now);
  const std::size_t first = (range.start.bytes() - start_.bytes()) / kPageSize;
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < range.pages(); ++i) {
    count += now.test(i) && present_.test(first + i) ? 1 : 0;  // others may carry markers
  }
  return count;
}

void LocalPages::discard(HostRange range) const {
  const int advice = method_ == LocalDiscard::dont_need ? MADV_DONTNEED
                     : method_ == LocalDiscard::free    ? MADV_FREE
                                                        : MADV_REMOVE;
  (void)::madvise(base_ + range.start.bytes(), range.size.count(), advice);
}

HostRange clip(HostRange range, Bytes limit, DiscardOutcome& outcome) {
  const std::uint64_t start = std::min(range.start.bytes(), limit.count());
  const Bytes inside = Bytes(std::min(range.size.count(), limit.count() - start)).page_floor();
  outcome.failed += static_cast<std::uint32_t>(range.pages() - inside.whole_pages());
  return {HostOffset(start), inside};
}

}  // namespace fileballoon
