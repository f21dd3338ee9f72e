// Which pages of a shared memory object are zero, found without backing a hole by looking at it.
// Shared by all discarders. Stateless; thread-safe.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>

#include "fileballoon/frame.h"

namespace fileballoon {

/// True if all `size` bytes at `data` are zero. `size` is a multiple of 64; `data` is 64-byte
/// aligned or at least readable with unaligned loads.
[[nodiscard]] bool is_zero(const std::byte* data, std::size_t size);

/// What was found of up to kMaxPages pages.
struct ZeroMap {
  static constexpr std::size_t kMaxPages = 512;
  std::bitset<kMaxPages> zero;    ///< reads as zero (holes included)
  std::bitset<kMaxPages> backed;  ///< has memory behind it
  std::bitset<kMaxPages> bad;     ///< could not be read
};

/// Looks at the pages of `range` (at most kMaxPages, inside the object) of `fd`, a shmem object.
/// Holes are found by SEEK_DATA and never read; data is copied out by pread(2) in pieces that fit
/// the L2 cache, since reading through a mapping would allocate pages in shmem holes.
void look(int fd, HostRange range, ZeroMap& map);

/// Only the `backed` part of `map`.
void look_backed(int fd, HostRange range, ZeroMap& map);

}  // namespace fileballoon
