#include "uffd/zero_check.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace fileballoon {
namespace {

// A quarter of an L2 cache: the copy is still there when it is looked at. (Half of it reads and
// looks at 0.8 of the rate: calls cost more where the kernel is a guest's.)
constexpr std::size_t kChunk = 128 * 1024;

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

// A race detector would call its reads of the guest's memory races with the guest's writes; that no
// write is lost is the work of the write-protection around it.
__attribute__((no_sanitize("thread"))) bool is_zero(const std::byte* data, std::size_t size) {
  // Or-ed over two cache lines at a time: most pages that hold data show it in their first.
  using Vector [[gnu::vector_size(16), gnu::may_alias, gnu::aligned(1)]] = std::uint64_t;
  constexpr std::size_t kAtATime = 8;
  for (std::size_t at = 0; at < size; at += kAtATime * sizeof(Vector)) {
    const auto* vectors = reinterpret_cast<const Vector*>(data + at);
    Vector any = vectors[0];
    for (std::size_t i = 1; i < kAtATime; ++i) {
      any |= vectors[i];
    }
    if ((any[0] | any[1]) != 0) {
      return false;
    }
  }
  return true;
}

void look(int fd, HostRange range, ZeroMap& map) {
  alignas(64) thread_local std::byte buffer[kChunk];
  map.zero.set();
  map.bad.reset();
  const std::size_t pages = range.pages();
  for (std::size_t page = 0; page < pages;) {
    const std::size_t count = std::min(kChunk / kPageSize, pages - page);
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

std::uint32_t backed_pages(int fd, HostRange range) {
  // Not in Debian 12's headers (include/uapi/linux/mman.h of 6.5).
  constexpr long kSysCachestat = 451;
  struct Range {
    std::uint64_t offset;
    std::uint64_t length;
  };
  struct Stat {
    std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
  };
  static std::atomic<bool> have_cachestat{true};
  if (have_cachestat.load(std::memory_order_relaxed)) {
    Range wanted{range.start.bytes(), range.size.count()};
    Stat stat{};
    if (::syscall(kSysCachestat, fd, &wanted, &stat, 0) == 0) {
      // Of a shmem object, "evicted" are the pages in swap.
      return static_cast<std::uint32_t>(stat.cached + stat.evicted);
    }
    have_cachestat.store(false, std::memory_order_relaxed);
  }
  std::uint32_t backed = 0;
  const bool known = for_each_data(fd, range, [&](std::size_t, std::size_t count) {
    backed += static_cast<std::uint32_t>(count);
  });
  return known ? backed : static_cast<std::uint32_t>(range.pages());
}

}  // namespace fileballoon
