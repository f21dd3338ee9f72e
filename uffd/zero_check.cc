#include "uffd/zero_check.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fileballoon {
namespace {

// A quarter of a small L2 cache: the copy is still there when it is looked at.
constexpr std::size_t kChunk = 64 * 1024;

// Calls visit(first_page, count) for each run of data pages in `range`; false when lseek failed.
template <class Visit>
bool for_each_data(int fd, HostRange range, Visit&& visit) {
  const auto base = static_cast<off_t>(range.start.bytes());
  const auto end = static_cast<off_t>(range.end().bytes());
  off_t at = base;
  while (at < end) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0) {
      return errno == ENXIO;  // no data up to the end of the file (lseek(2))
    }
    if (data >= end) {
      return true;
    }
    const off_t hole = std::min(::lseek(fd, data, SEEK_HOLE), end);
    if (hole < 0) {
      return false;
    }
    visit(static_cast<std::size_t>((data - base) / static_cast<off_t>(kPageSize)),
          static_cast<std::size_t>((hole - data) / static_cast<off_t>(kPageSize)));
    at = std::max<off_t>(hole, data + static_cast<off_t>(kPageSize));
  }
  return true;
}

}  // namespace

bool is_zero(const std::byte* data, std::size_t size) {
  // Word loads or-ed over a cache line at a time: GCC turns the inner loop into vector code, and
  // most pages that hold data show it in their first line.
  for (std::size_t at = 0; at < size; at += 64) {
    std::uint64_t words[8];
    std::memcpy(words, data + at, sizeof words);
    std::uint64_t any = 0;
    for (const std::uint64_t word : words) {
      any |= word;
    }
    if (any != 0) {
      return false;
    }
  }
  return true;
}

void look_backed(int fd, HostRange range, ZeroMap& map) {
  map.backed.reset();
  const bool ok = for_each_data(fd, range, [&](std::size_t first, std::size_t count) {
    for (std::size_t i = first; i < first + count; ++i) {
      map.backed.set(i);
    }
  });
  if (!ok) {
    map.backed.set();  // unknown: count nothing as freed
  }
}

void look(int fd, HostRange range, ZeroMap& map) {
  alignas(64) thread_local std::byte buffer[kChunk];
  map.zero.set();
  map.bad.reset();
  look_backed(fd, range, map);
  const std::size_t pages = range.pages();
  std::size_t page = 0;
  while (page < pages) {
    if (!map.backed.test(page)) {
      ++page;
      continue;
    }
    std::size_t count = 1;
    while (count < kChunk / kPageSize && page + count < pages && map.backed.test(page + count)) {
      ++count;
    }
    const auto offset = static_cast<off_t>(range.start.bytes() + page * kPageSize);
    const ssize_t got = ::pread(fd, buffer, count * kPageSize, offset);
    for (std::size_t i = 0; i < count; ++i) {
      if (got < static_cast<ssize_t>((i + 1) * kPageSize)) {
        map.bad.set(page + i);
        map.zero.reset(page + i);
      } else if (!is_zero(buffer + i * kPageSize, kPageSize)) {
        map.zero.reset(page + i);
      }
    }
    page += count;
  }
}

}  // namespace fileballoon
