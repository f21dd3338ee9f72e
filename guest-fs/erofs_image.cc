#include "guest-fs/erofs_image.h"

#include <array>
#include <cstring>
#include <string_view>

namespace fileballoon::guest {
namespace {

using Block = std::array<std::byte, kPageSize>;

// Places in the metadata block. A node id is an offset in units of 32 bytes.
constexpr std::size_t kSuperBlock = 1024;
constexpr std::size_t kNodeUnit = 32;
constexpr std::size_t kNodeSize = 64;  // the extended form
constexpr std::size_t kRootNode = 2048;
/// The last bytes of the block: the chunk table, which follows its node, then fills the rest of the
/// image, whose every entry reads "no block".
constexpr std::size_t kFileNode = kPageSize - kNodeSize;

constexpr std::uint32_t kMagic = 0xE0F5E1E2;
constexpr std::uint32_t kFeatureChunkedFile = 0x4;
constexpr std::uint16_t kExtendedNode = 1;
constexpr std::uint16_t kLayoutInline = 2 << 1;
constexpr std::uint16_t kLayoutChunks = 4 << 1;
constexpr std::byte kNoBlock{0xFF};  // a block address of all ones is a hole

struct Entry {
  std::string_view name;
  std::size_t node;
  std::uint8_t type;  // EROFS_FT_REG_FILE, EROFS_FT_DIR
};
constexpr std::array<Entry, 3> kEntries = {
    {{".", kRootNode, 2}, {"..", kRootNode, 2}, {ErofsImage::kFileName, kFileNode, 1}}};
constexpr std::size_t kEntrySize = 12;

/// Little-endian, whatever the machine.
template <class T>
void put(Block& block, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) {
    block.at(at + i) = static_cast<std::byte>(value >> (8 * i) & 0xFF);
  }
}

struct Node {
  std::uint16_t layout;
  std::uint16_t mode;
  std::uint64_t size;
  std::uint32_t chunk_format;
  std::uint32_t number;
  std::uint32_t links;
};

void put_node(Block& block, std::size_t at, const Node& node) {
  put<std::uint16_t>(block, at, kExtendedNode | node.layout);
  put<std::uint16_t>(block, at + 4, node.mode);
  put<std::uint64_t>(block, at + 8, node.size);
  put<std::uint32_t>(block, at + 16, node.chunk_format);
  put<std::uint32_t>(block, at + 20, node.number);
  put<std::uint32_t>(block, at + 44, node.links);
}

/// The root folder's entries lie behind its node: the fixed parts, then the names.
std::size_t put_entries(Block& block, std::size_t at) {
  std::size_t name_at = kEntries.size() * kEntrySize;
  for (std::size_t i = 0; i < kEntries.size(); ++i) {
    const Entry& entry = kEntries.at(i);
    const std::size_t here = at + i * kEntrySize;
    put<std::uint64_t>(block, here, entry.node / kNodeUnit);
    put<std::uint16_t>(block, here + 8, static_cast<std::uint16_t>(name_at));
    put<std::uint8_t>(block, here + 10, entry.type);
    std::memcpy(block.data() + at + name_at, entry.name.data(), entry.name.size());
    name_at += entry.name.size();
  }
  return name_at;
}

Block make_metadata() {
  Block block{};
  put<std::uint32_t>(block, kSuperBlock, kMagic);
  put<std::uint8_t>(block, kSuperBlock + 12, 12);  // blocks of 4 KiB
  put<std::uint16_t>(block, kSuperBlock + 14, kRootNode / kNodeUnit);
  put<std::uint64_t>(block, kSuperBlock + 16, 2);  // nodes
  put<std::uint32_t>(block, kSuperBlock + 36, ErofsImage::kSize / kPageSize);
  put<std::uint32_t>(block, kSuperBlock + 80, kFeatureChunkedFile);
  const std::size_t folder_size = put_entries(block, kRootNode + kNodeSize);
  put_node(block, kRootNode, {kLayoutInline, 0040500, folder_size, 0, 1, 2});
  put_node(block, kFileNode,
           {kLayoutChunks, 0100400, ErofsImage::kFileSize, ErofsImage::kChunkBits, 2, 1});
  return block;
}

}  // namespace

std::span<const std::byte, kPageSize> ErofsImage::page(std::uint64_t index) {
  static const Block kMetadata = make_metadata();
  static const Block kHoles = [] {
    Block block;
    block.fill(kNoBlock);
    return block;
  }();
  return index == 0 ? kMetadata : kHoles;
}

}  // namespace fileballoon::guest
