// Frames and their ranges: coalescing must name every frame once and no other frame. A frame too
// many here would be a page that the host looks at for nothing; one too few is memory never freed.
#include "fileballoon/frame.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace fileballoon {
namespace {

std::vector<FrameRange> coalesced(std::vector<GuestFrame> frames) {
  std::vector<FrameRange> out;
  coalesce(frames, out);
  return out;
}

TEST(Coalesce, NothingGivesNothing) { EXPECT_TRUE(coalesced({}).empty()); }

TEST(Coalesce, NeighboursInAnyOrderBecomeOneRange) {
  EXPECT_EQ(coalesced({GuestFrame(7), GuestFrame(5), GuestFrame(6)}),
            (std::vector<FrameRange>{{GuestFrame(5), 3}}));
}

TEST(Coalesce, DuplicatesCollapse) {
  EXPECT_EQ(coalesced({GuestFrame(5), GuestFrame(5), GuestFrame(6), GuestFrame(6), GuestFrame(5)}),
            (std::vector<FrameRange>{{GuestFrame(5), 2}}));
}

TEST(Coalesce, GapsSeparate) {
  EXPECT_EQ(coalesced({GuestFrame(0), GuestFrame(2)}),
            (std::vector<FrameRange>{{GuestFrame(0), 1}, {GuestFrame(2), 1}}));
}

TEST(Coalesce, ReplacesWhatWasInTheOutput) {
  std::vector<FrameRange> out = {{GuestFrame(99), 9}};
  std::vector<GuestFrame> frames = {GuestFrame(1)};
  coalesce(frames, out);
  EXPECT_EQ(out, (std::vector<FrameRange>{{GuestFrame(1), 1}}));
}

TEST(Coalesce, RandomFramesGiveTheSameSetAscendingAndMaximal) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::set<std::uint64_t> expected;
    std::vector<GuestFrame> frames;
    for (std::uint64_t n = random() % 300; n > 0; --n) {
      const std::uint64_t frame = random() % 400;
      expected.insert(frame);
      frames.emplace_back(frame);
    }
    std::set<std::uint64_t> got;
    std::vector<FrameRange> ranges;
    coalesce(frames, ranges);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      ASSERT_GT(ranges[i].count, 0U);
      if (i > 0) {
        ASSERT_GT(ranges[i].first, ranges[i - 1].end()) << "touching ranges were not joined";
      }
      for (std::uint64_t k = 0; k < ranges[i].count; ++k) {
        got.insert((ranges[i].first + k).number());
      }
    }
    EXPECT_EQ(got, expected);
    EXPECT_EQ(total_frames(ranges), expected.size());
  }
}

TEST(FrameRange, SizesAndEnds) {
  const FrameRange range{GuestFrame(10), 5};
  EXPECT_EQ(range.end(), GuestFrame(15));
  EXPECT_EQ(range.size(), Bytes::pages(5));
  EXPECT_EQ(range.end() - range.first, 5U);
  const HostRange host{HostOffset(8192), Bytes::pages(2)};
  EXPECT_EQ(host.end(), HostOffset(16384));
  EXPECT_EQ(host.pages(), 2U);
}

}  // namespace
}  // namespace fileballoon
