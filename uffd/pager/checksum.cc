#include "uffd/pager/checksum.h"

// Header only: no run-time dependency, and the compiler sees the loop.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fileballoon {

std::uint64_t checksum64(std::span<const std::byte> data, PageKey key) {
  // Mixed in afterwards: a seed would have the hash derive new secrets for every page.
  const std::uint64_t mixed = (key.index + 1ULL) * 0x9E3779B97F4A7C15ULL;
  return XXH3_64bits(data.data(), data.size()) ^ mixed ^ (mixed >> 32);
}

}  // namespace fileballoon
