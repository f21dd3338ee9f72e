// Parts of the agent that are right or wrong by themselves: the image behind large pages, and what
// is read of the kernel's files.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "guest-fs/erofs_image.h"
#include "guest-fs/guest_memory.h"

namespace fileballoon::guest {
namespace {

std::uint64_t number(std::span<const std::byte> bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= static_cast<std::uint64_t>(bytes[at + i]) << (8 * i);
  }
  return value;
}

// Walks the image as the kernel does, from the superblock to the file (offsets as in erofs_fs.h of
// the kernel). Wrong here: the kernel refuses the mount and every balloon has small pages.
TEST(ErofsImage, LeadsFromItsSuperblockToAFileThatIsAHole) {
  const auto block = ErofsImage::page(0);
  EXPECT_EQ(number(block, 1024, 4), 0xE0F5E1E2U);
  EXPECT_EQ(1U << number(block, 1024 + 12, 1), kPageSize);
  EXPECT_EQ(number(block, 1024 + 36, 4) * kPageSize, ErofsImage::kSize);
  const std::size_t root = number(block, 1024 + 14, 2) * 32;
  EXPECT_EQ(number(block, root, 2), 1U | 2U << 1);  // extended, inline
  EXPECT_EQ(number(block, root + 4, 2) & 0170000U, 0040000U);
  const std::size_t folder_size = number(block, root + 8, 8);

  const auto entries = block.subspan(root + 64, folder_size);
  const std::size_t names = number(entries, 8, 2);
  ASSERT_EQ(names % 12, 0U);
  std::size_t file = 0;
  std::string previous;
  for (std::size_t at = 0; at < names; at += 12) {
    const std::size_t name_at = number(entries, at + 8, 2);
    const std::size_t end = at + 12 < names ? number(entries, at + 20, 2) : folder_size;
    const std::string name(reinterpret_cast<const char*>(entries.data()) + name_at, end - name_at);
    EXPECT_LT(previous, name);  // looked up by bisection
    previous = name;
    if (name == ErofsImage::kFileName) {
      file = number(entries, at, 8) * 32;
    }
  }
  ASSERT_NE(file, 0U);
  EXPECT_EQ(number(block, file, 2), 1U | 4U << 1);  // extended, chunks
  EXPECT_EQ(number(block, file + 4, 2), 0100400U);  // a regular file for root's eyes
  EXPECT_EQ(number(block, file + 8, 8), ErofsImage::kFileSize);
  EXPECT_EQ(number(block, file + 16, 2), ErofsImage::kChunkBits);
  // The chunk table follows the node, and no chunk has a block.
  const std::uint64_t chunks = ErofsImage::kFileSize >> ErofsImage::kChunkBits >> 12;
  EXPECT_GE(ErofsImage::kSize, file + 64 + chunks * 4);
  for (std::uint64_t at = file + 64; at < ErofsImage::kSize; at += 4) {
    ASSERT_EQ(number(ErofsImage::page(at / kPageSize), at % kPageSize, 4), 0xFFFFFFFFU);
  }
}

TEST(GuestMemory, FreeBlocksAreCountedInUnitsOfTheSizeAskedFor) {
  const std::string text =
      "Node 0, zone      DMA      0      0      0      0      0      1      1      1      0      1 "
      "     3 \n"
      "Node 0, zone    DMA32      2      2      1      3      2      1      2      1      2      5 "
      "     7 \n"
      "Node 1, zone   Normal      9      0      0      0      0      0      0      0      0      1 "
      "     0 \n";
  EXPECT_EQ(free_blocks(text, 512), 5U + 2 * 7 + 1);  // the DMA zone is not for page cache
  EXPECT_EQ(free_blocks(text, 1024), 7U);
  EXPECT_EQ(free_blocks("", 512), 0U);  // no /proc/buddyinfo: small pages, no guess
}

// Wrong here: growth wakes reclaim, or the balloon gives way for nothing.
TEST(GuestMemory, WhatTheKernelKeepsFreeIsSummedOverItsZones) {
  const KernelMarks marks = kernel_marks(
      "Node 0, zone      DMA\n  pages free     3840\n        min      177\n        low      221\n"
      "        high     265\n        protection: (0, 937, 937, 937, 937)\n"
      "  pagesets\n    cpu: 0\n              high:  110\n"
      "Node 0, zone    DMA32\n        min      11086\n        low      13857\n"
      "        high     16628\n        protection: (0, 0, 0, 0, 0)\n"
      "              high:  7054\n");
  EXPECT_EQ(marks.reserve, Bytes::pages(265 + 937 + 16628));
  EXPECT_EQ(marks.reclaims_below, Bytes::pages(221 + 937 + 13857));
  EXPECT_EQ(kernel_marks("").reserve, Bytes(0));
}

// Wrong here: memory that a program gave up stays with the guest for many seconds, uncounted.
TEST(GuestMemory, FreePagesInTheListsOfCpusAreThoseAboveTheLeastLength) {
  const std::string of_6_13 =
      "Node 0, zone    DMA32\n  pages free     9000\n  pagesets\n    cpu: 0\n"
      "              count:    5000\n              high:     6000\n              batch:    63\n"
      "              high_min: 1000\n              high_max: 16000\n  vm stats threshold: 16\n"
      "    cpu: 1\n              count:    300\n              high:     1000\n"
      "              batch:    63\n              high_min: 1000\n              high_max: 16000\n";
  EXPECT_EQ(spare_in_cpu_lists(of_6_13), 4000U);
  const std::string of_6_1 =
      "    cpu: 0\n              count: 352\n              high:  500\n              batch: 63\n";
  EXPECT_EQ(spare_in_cpu_lists(of_6_1), 100U);
  EXPECT_EQ(spare_in_cpu_lists(""), 0U);
}

// Wrong here: an exchange looks for used memory on a CPU that holds none.
TEST(GuestMemory, PagesInTheListsOfCpusAreAddedUpOverZones) {
  const std::string text =
      "Node 0, zone      DMA\n    cpu: 0\n              count:    5\n    cpu: 1\n"
      "              count:    0\nNode 0, zone    DMA32\n    cpu: 0\n              count:    300\n"
      "    cpu: 1\n              count:    70\n    cpu: 99999999\n              count:    1\n";
  EXPECT_EQ(pages_in_cpu_lists(text), (std::vector<std::uint64_t>{305, 70}));
  EXPECT_TRUE(pages_in_cpu_lists("").empty());
}

}  // namespace
}  // namespace fileballoon::guest
