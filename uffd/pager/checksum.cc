#include "uffd/pager/checksum.h"

// Header only: no run-time dependency, and the compiler sees the loop.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fileballoon {

std::uint64_t checksum64(std::span<const std::byte> data, PageKey key) {
  return XXH3_64bits_withSeed(data.data(), data.size(), key.index);
}

}  // namespace fileballoon
