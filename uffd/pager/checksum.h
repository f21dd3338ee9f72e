// Checksums of stored pages (XXH3), with the page's key mixed in: content that was written for one
// page never passes as that of another. Pure; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "uffd/pager/page_store.h"

namespace fileballoon {

/// 64 bits over `data` and `key`. 0.6 µs for 4 KiB, less for what is compressed.
[[nodiscard]] std::uint64_t checksum64(std::span<const std::byte> data, PageKey key);

/// The lower half, where metadata must be small: misses one corruption in 2^32.
[[nodiscard]] inline std::uint32_t checksum32(std::span<const std::byte> data, PageKey key) {
  return static_cast<std::uint32_t>(checksum64(data, key));
}

}  // namespace fileballoon
