// Codec: compresses single pages with lz4 (fast; the default) or zstd (denser). Compression keeps
// its working memory in the object and is for one thread at a time; decompression is thread-safe
// and allocates nothing. Used by the compressed store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon {

enum class Compression : std::uint8_t { lz4, zstd };

/// "lz4" or "zstd"; the error names both.
[[nodiscard]] Result<Compression> parse_compression(std::string_view text);
[[nodiscard]] std::string_view to_string(Compression compression);

class Codec {
 public:
  Codec() = default;
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;
  virtual ~Codec() = default;

  /// Compresses one page into `out`. Returns the length, or 0 if it does not fit.
  [[nodiscard]] virtual std::size_t compress(const std::byte* page, std::span<std::byte> out) = 0;
  /// Expands `data` into exactly one page. False if it is not such data.
  [[nodiscard]] virtual bool decompress(std::span<const std::byte> data, std::byte* page) const = 0;
};

/// Throws std::bad_alloc.
[[nodiscard]] std::unique_ptr<Codec> make_codec(Compression compression);

}  // namespace fileballoon
