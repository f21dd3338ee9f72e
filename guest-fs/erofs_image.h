// ErofsImage: the bytes of a file system image that holds one file, `pages`, which is nothing but a
// hole. EROFS (Linux 5.4) caches its files in large folios (Linux 6.2) and mounts an image that is
// an ordinary file (Linux 6.12), so this file's page cache holds zeros in pieces of 2 MiB, with no
// disk, no loop device and no READ behind it. The image is computed, never stored: the FUSE server
// answers reads of its hidden file `.image` from here. Pure; thread-safe.
// Format: include "erofs_fs.h" of the kernel, and docs.kernel.org/filesystems/erofs.html.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "fileballoon/bytes.h"

namespace fileballoon::guest {

class ErofsImage {
 public:
  /// Name of the file in the image's root, and its size.
  static constexpr const char* kFileName = "pages";
  static constexpr std::uint64_t kFileSize = std::uint64_t{1} << 60;
  /// A chunk is the unit that is mapped to blocks: 2^31 blocks (8 TiB), the most the format knows.
  static constexpr unsigned kChunkBits = 31;
  /// The metadata block, then a table with one 32-bit entry for each chunk.
  static constexpr std::uint64_t kSize =
      kPageSize + (kFileSize >> kChunkBits) / kPageSize * sizeof(std::uint32_t);

  /// One page of the image; `index` is below kSize / kPageSize. All pages but the first are the
  /// same one.
  [[nodiscard]] static std::span<const std::byte, kPageSize> page(std::uint64_t index);
};

}  // namespace fileballoon::guest
