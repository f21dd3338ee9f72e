// Which pages of a shared memory object are zero, found without backing a hole by looking at it.
// Shared by all discarders. Stateless; thread-safe.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>

#include "fileballoon/frame.h"

namespace fileballoon {

/// True if all `size` bytes at `data` are zero. `size` is a multiple of 128; `data` need not be
/// aligned.
[[nodiscard]] bool is_zero(const std::byte* data, std::size_t size);

/// What was found of up to kMaxPages pages.
struct ZeroMap {
  static constexpr std::size_t kMaxPages = 512;
  std::bitset<kMaxPages> zero;  ///< reads as zero (holes included)
  std::bitset<kMaxPages> bad;   ///< could not be read
};

/// Reads the pages of `range` (at most kMaxPages, inside the object) of `fd`, a shmem object, by
/// pread(2) in pieces that fit the L2 cache. A hole reads as zeros and stays a hole; reading it
/// through a mapping would allocate it.
void look(int fd, HostRange range, ZeroMap& map);

/// Pages of `range` that have memory or swap behind them. By cachestat(2) (6.5), which also counts
/// pages that fallocate(2) has allocated and nobody has touched; on older kernels by SEEK_DATA,
/// which takes those for holes and walks past the end of the range (3 ms in 1 GiB of data).
[[nodiscard]] std::uint32_t backed_pages(int fd, HostRange range);

}  // namespace fileballoon
