#include "uffd/pager/codec.h"

#include <lz4.h>
#include <zstd.h>

#include <new>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon {
namespace {

constexpr int kPage = static_cast<int>(kPageSize);

class Lz4Codec final : public Codec {
 public:
  Lz4Codec() : state_(static_cast<std::size_t>(LZ4_sizeofState())) {}

  std::size_t compress(const std::byte* page, std::span<std::byte> out) override {
    const int length = LZ4_compress_fast_extState(
        state_.data(), reinterpret_cast<const char*>(page), reinterpret_cast<char*>(out.data()),
        kPage, static_cast<int>(out.size()), kAcceleration);
    return length > 0 ? static_cast<std::size_t>(length) : 0;
  }

  bool decompress(std::span<const std::byte> data, std::byte* page) const override {
    return LZ4_decompress_safe(reinterpret_cast<const char*>(data.data()),
                               reinterpret_cast<char*>(page), static_cast<int>(data.size()),
                               kPage) == kPage;
  }

 private:
  static constexpr int kAcceleration = 1;  // lz4's default
  std::vector<char> state_;
};

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// One context a thread, made at its first use and kept: afterwards decompression allocates nothing.
ZSTD_DCtx* decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context(ZSTD_createDCtx());
  return context.get();
}

class ZstdCodec final : public Codec {
 public:
  ZstdCodec() : context_(ZSTD_createCCtx()) {
    if (!context_) {
      throw std::bad_alloc();
    }
  }

  std::size_t compress(const std::byte* page, std::span<std::byte> out) override {
    const std::size_t length =
        ZSTD_compressCCtx(context_.get(), out.data(), out.size(), page, kPageSize, kLevel);
    return ZSTD_isError(length) ? 0 : length;
  }

  bool decompress(std::span<const std::byte> data, std::byte* page) const override {
    ZSTD_DCtx* context = decompressor();
    return context != nullptr &&
           ZSTD_decompressDCtx(context, page, kPageSize, data.data(), data.size()) == kPageSize;
  }

 private:
  static constexpr int kLevel = 1;  // higher levels gain little on 4 KiB and cost latency
  std::unique_ptr<ZSTD_CCtx, FreeCompressor> context_;
};

}  // namespace

Result<Compression> parse_compression(std::string_view text) {
  if (text == "lz4") {
    return Compression::lz4;
  }
  if (text == "zstd") {
    return Compression::zstd;
  }
  return Error{"unknown compression '" + std::string(text) + "': use lz4 or zstd"};
}

std::string_view to_string(Compression compression) {
  return compression == Compression::lz4 ? "lz4" : "zstd";
}

std::unique_ptr<Codec> make_codec(Compression compression) {
  if (compression == Compression::zstd) {
    return std::make_unique<ZstdCodec>();
  }
  return std::make_unique<Lz4Codec>();
}

}  // namespace fileballoon
