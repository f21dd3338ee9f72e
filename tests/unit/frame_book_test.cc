// FrameBook: under which frames balloon pages were told. A wrong frame here would be reported to
// the host as moved or gone when it is not, or a page that moved would cost the host memory for
// ever.
#include "guest-fs/frame_book.h"

#include <gtest/gtest.h>

#include <array>

namespace fileballoon::guest {
namespace {

using Frames = std::vector<GuestFrame>;

Frames read(const FrameBook& book, std::size_t record) {
  Frames frames(book.at(record).extent.count);
  book.read(record, frames);
  return frames;
}

Frames consecutive(std::uint64_t first, std::size_t count) {
  Frames frames;
  for (std::size_t i = 0; i < count; ++i) {
    frames.emplace_back(first + i);
  }
  return frames;
}

TEST(FrameBook, RemembersAnyOrderOfFrames) {
  FrameBook book;
  const Frames frames = {GuestFrame(7), GuestFrame(8), FrameBook::kGone, FrameBook::kGone,
                         GuestFrame(3), GuestFrame(2), GuestFrame(100),  GuestFrame(101)};
  book.add({FilePage(40), frames.size()}, frames);
  EXPECT_EQ(read(book, 0), frames);
  EXPECT_EQ(book.pages(), 6U);
  EXPECT_EQ(book.at(0).resident, 6U);
}

TEST(FrameBook, ContiguousFramesCostNextToNothing) {
  FrameBook book;
  book.add({FilePage(0), 512}, consecutive(1000, 512));
  EXPECT_EQ(book.at(0).runs.size(), 1U);
  EXPECT_EQ(read(book, 0), consecutive(1000, 512));
}

TEST(FrameBook, ARecordWithoutPagesGoesAndTheOthersStay) {
  FrameBook book;
  book.add({FilePage(0), 4}, consecutive(10, 4));
  book.add({FilePage(4), 4}, consecutive(20, 4));
  book.add({FilePage(8), 4}, consecutive(30, 4));
  book.write(0, Frames(4, FrameBook::kGone));
  ASSERT_EQ(book.size(), 2U);
  EXPECT_EQ(read(book, 0), consecutive(30, 4));
  EXPECT_EQ(read(book, 1), consecutive(20, 4));
  EXPECT_EQ(book.pages(), 8U);
  book.add({FilePage(12), 4}, Frames(4, FrameBook::kGone));
  EXPECT_EQ(book.size(), 2U) << "nothing to remember";
}

TEST(FrameBook, FramesMoveWithinARecord) {
  FrameBook book;
  book.add({FilePage(0), 4}, consecutive(10, 4));
  Frames frames = read(book, 0);
  frames[2] = GuestFrame(99);
  book.write(0, frames);
  EXPECT_EQ(read(book, 0), frames);
  EXPECT_EQ(book.pages(), 4U);
}

}  // namespace
}  // namespace fileballoon::guest
