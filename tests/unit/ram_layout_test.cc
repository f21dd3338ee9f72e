// RamLayout is the check that a frame named by a guest is RAM of that guest. If it let one slip
// through, the host would look at (and perhaps discard) memory the guest never named.
#include "fileballoon/ram_layout.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>

namespace fileballoon {
namespace {

constexpr std::uint64_t kFramesPerGib = (1ULL << 30) / kPageSize;
constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

RamSegment segment(std::uint64_t first, std::uint64_t count, std::uint64_t offset_pages,
                   std::uint32_t backing = 0) {
  return {{GuestFrame(first), count}, HostOffset(offset_pages * kPageSize), backing};
}

/// A 4 GiB q35 guest: 2 GiB below the PCI hole, 2 GiB from 4 GiB on, one memfd.
RamLayout q35() {
  return RamLayout::create({segment(4 * kFramesPerGib, 2 * kFramesPerGib, 2 * kFramesPerGib),
                            segment(0, 2 * kFramesPerGib, 0)})
      .value();
}

std::string refused(std::vector<RamSegment> segments) {
  const Result<RamLayout> layout = RamLayout::create(std::move(segments));
  EXPECT_FALSE(layout.has_value());
  return layout ? "" : layout.error().message;
}

TEST(RamLayout, FramesAboveThePciHoleLieLowerInTheBacking) {
  std::vector<BackingRange> out;
  ASSERT_TRUE(q35().translate({GuestFrame(4 * kFramesPerGib + 5), 3}, out));
  ASSERT_EQ(out.size(), 1U);
  EXPECT_EQ(out[0].range.start, HostOffset((2 * kFramesPerGib + 5) * kPageSize));
  EXPECT_EQ(out[0].range.size, Bytes::pages(3));
}

TEST(RamLayout, TheHoleIsNoRam) {
  std::vector<BackingRange> out;
  EXPECT_FALSE(q35().translate({GuestFrame(2 * kFramesPerGib), 1}, out));
  EXPECT_FALSE(q35().translate({GuestFrame(4 * kFramesPerGib - 1), 1}, out));
  EXPECT_FALSE(q35().translate({GuestFrame(6 * kFramesPerGib), 1}, out));
  EXPECT_TRUE(out.empty());
}

TEST(RamLayout, ARangeThatLeavesRamIsRefusedWholeAndLeavesTheOutputAlone) {
  std::vector<BackingRange> out = {{7, {HostOffset(0), Bytes(1)}}};
  EXPECT_FALSE(q35().translate({GuestFrame(2 * kFramesPerGib - 1), 2}, out));
  EXPECT_FALSE(q35().translate({GuestFrame(0), 6 * kFramesPerGib}, out));
  ASSERT_EQ(out.size(), 1U);
  EXPECT_EQ(out[0].backing, 7U);
}

TEST(RamLayout, HostileNumbersDoNotWrap) {
  std::vector<BackingRange> out;
  for (const FrameRange range :
       {FrameRange{GuestFrame(0), 0}, FrameRange{GuestFrame(0), kHuge},
        FrameRange{GuestFrame(kHuge), 1}, FrameRange{GuestFrame(kHuge), kHuge},
        FrameRange{GuestFrame(1), kHuge}, FrameRange{GuestFrame(kHuge - 1), 3},
        FrameRange{GuestFrame(5), kHuge - 4}}) {
    EXPECT_FALSE(q35().translate(range, out)) << range.first.number() << "+" << range.count;
  }
  EXPECT_TRUE(out.empty());
}

TEST(RamLayout, AnEmptyLayoutHasNoRam) {
  std::vector<BackingRange> out;
  EXPECT_FALSE(RamLayout().translate({GuestFrame(0), 1}, out));
  EXPECT_EQ(RamLayout().total(), Bytes(0));
  EXPECT_EQ(RamLayout().end(), GuestFrame(0));
  EXPECT_TRUE(RamLayout::create({}).has_value());
}

TEST(RamLayout, TotalsCountRamAndNotTheHole) {
  EXPECT_EQ(q35().total(), Bytes::gib(4));
  EXPECT_EQ(q35().end(), GuestFrame(6 * kFramesPerGib));
}

TEST(RamLayout, ARangeAcrossTwoBackingsComesInPieces) {
  const RamLayout numa =
      RamLayout::create({segment(0, 100, 0, 0), segment(100, 100, 50, 1)}).value();
  std::vector<BackingRange> out;
  ASSERT_TRUE(numa.translate({GuestFrame(98), 5}, out));
  EXPECT_EQ(out, (std::vector<BackingRange>{{0, {HostOffset(98 * kPageSize), Bytes::pages(2)}},
                                            {1, {HostOffset(50 * kPageSize), Bytes::pages(3)}}}));
}

TEST(RamLayout, ContiguousSegmentsBecomeOne) {
  const RamLayout layout = RamLayout::create({segment(10, 10, 10), segment(0, 10, 0)}).value();
  EXPECT_EQ(layout.segments().size(), 1U);
  std::vector<BackingRange> out;
  ASSERT_TRUE(layout.translate({GuestFrame(5), 10}, out));
  EXPECT_EQ(out.size(), 1U);
}

TEST(RamLayout, RefusesWhatCannotBe) {
  EXPECT_NE(refused({segment(0, 0, 0)}).find("empty"), std::string::npos);
  EXPECT_NE(refused({segment(0, 10, 0), segment(9, 10, 100)}).find("guest-physical"),
            std::string::npos);
  EXPECT_NE(refused({segment(0, 10, 0), segment(100, 10, 9)}).find("overlap in the backing"),
            std::string::npos);
  EXPECT_NE(refused({segment(kHuge - 2, 10, 0)}).find("wraps"), std::string::npos);
  EXPECT_NE(refused({segment(0, kHuge, 0)}).find("wraps"), std::string::npos);
  EXPECT_NE(refused({{{GuestFrame(0), 2}, HostOffset(kHuge - kPageSize + 1), 0}}).find("wraps"),
            std::string::npos);
  EXPECT_NE(refused({{{GuestFrame(0), 1}, HostOffset(1), 0}}).find("aligned"), std::string::npos);
  EXPECT_TRUE(RamLayout::create({segment(0, 10, 0, 0), segment(10, 10, 0, 1)}).has_value())
      << "the same offset in another backing is no overlap";
}

TEST(RamLayout, TranslatesLikeATableOfFrames) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::map<std::uint64_t, std::pair<std::uint32_t, std::uint64_t>> table;
    std::vector<RamSegment> segments;
    std::uint64_t frame = 0;
    std::uint64_t offset[2] = {0, 0};
    for (std::uint64_t n = 1 + random() % 5; n > 0; --n) {
      frame += random() % 3 == 0 ? random() % 6 : 0;
      const std::uint64_t count = 1 + random() % 12;
      const auto backing = static_cast<std::uint32_t>(random() % 2);
      offset[backing] += random() % 3;
      segments.push_back(segment(frame, count, offset[backing], backing));
      for (std::uint64_t i = 0; i < count; ++i) {
        table[frame + i] = {backing, offset[backing] + i};
      }
      frame += count;
      offset[backing] += count;
    }
    std::shuffle(segments.begin(), segments.end(), random);
    const RamLayout layout = RamLayout::create(segments).value();
    EXPECT_EQ(layout.total(), Bytes::pages(table.size()));
    for (int i = 0; i < 300; ++i) {
      const FrameRange range{GuestFrame(random() % (frame + 5)), 1 + random() % 20};
      std::vector<std::pair<std::uint32_t, std::uint64_t>> expected;
      bool all_ram = true;
      for (std::uint64_t f = range.first.number(); f < range.end().number(); ++f) {
        const auto found = table.find(f);
        all_ram = all_ram && found != table.end();
        if (all_ram) {
          expected.push_back(found->second);
        }
      }
      std::vector<BackingRange> out;
      ASSERT_EQ(layout.translate(range, out), all_ram);
      std::vector<std::pair<std::uint32_t, std::uint64_t>> got;
      for (const BackingRange& piece : out) {
        for (std::uint64_t p = 0; p < piece.range.pages(); ++p) {
          got.emplace_back(piece.backing, piece.range.start.bytes() / kPageSize + p);
        }
      }
      if (all_ram) {
        ASSERT_EQ(got, expected);
      }
    }
  }
}

}  // namespace
}  // namespace fileballoon
