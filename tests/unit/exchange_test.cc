// Exchange: without it the host pays for the whole reserve of every guest in which a program ever
// ran; with too much of it a guest spends its CPU time on moving memory that costs nothing.
#include "fileballoon/exchange.h"

#include <gtest/gtest.h>

namespace fileballoon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kFolio = 512;
const Exchange::Clock::time_point kBeginning{seconds(1000)};

/// Everything that an exchange asks for, in its order.
std::vector<Exchange::Part> all_of(Exchange& exchange, Exchange::Clock::time_point now) {
  std::vector<Exchange::Part> parts;
  while (const auto part = exchange.next(kFolio, now)) {
    parts.push_back(*part);
  }
  return parts;
}

TEST(Exchange, BeginsWhenProgramsHaveGivenUpMemoryAndTheBalloonHasItAll) {
  Exchange exchange;
  EXPECT_FALSE(exchange.due(true, kBeginning));
  EXPECT_FALSE(exchange.due(true, kBeginning + seconds(10))) << "nothing was ever used";
  exchange.note_growth(Exchange::kLeast);
  EXPECT_FALSE(exchange.due(false, kBeginning + seconds(11))) << "the balloon still grows";
  EXPECT_FALSE(exchange.due(true, kBeginning + seconds(12)));
  EXPECT_FALSE(exchange.due(true, kBeginning + seconds(12) + Exchange::kStill - milliseconds(1)));
  EXPECT_TRUE(exchange.due(true, kBeginning + seconds(12) + Exchange::kStill));
}

TEST(Exchange, TakesTheListsOfCpusFirstAndNoMoreThanWasUsed) {
  Exchange exchange;
  exchange.note_growth(20 * kFolio);
  exchange.begin({{4 * kFolio, 0, 3 * kFolio + 100}, 100 * kFolio}, kBeginning);
  EXPECT_TRUE(exchange.is_under_way());
  const auto parts = all_of(exchange, kBeginning);
  EXPECT_FALSE(exchange.is_under_way());
  std::uint64_t of_cpu[3] = {};
  std::uint64_t of_blocks = 0;
  bool blocks_seen = false;
  for (const Exchange::Part& part : parts) {
    EXPECT_EQ(part.pages, kFolio);
    EXPECT_FALSE(blocks_seen && part.cpu) << "a block was split while a list had pages";
    blocks_seen |= !part.cpu;
    (part.cpu ? of_cpu[*part.cpu] : of_blocks) += part.pages;
  }
  EXPECT_EQ(of_cpu[0], 4 * kFolio);
  EXPECT_EQ(of_cpu[1], 0U);
  EXPECT_EQ(of_cpu[2], 3 * kFolio);
  EXPECT_LE(of_blocks, 13 * kFolio);
  EXPECT_GE(of_blocks, 12 * kFolio);
}

TEST(Exchange, MemoryThatNobodyUsedSinceIsLeftAlone) {
  Exchange exchange;
  exchange.note_growth(20 * kFolio);
  exchange.begin({{}, 100 * kFolio}, kBeginning);
  EXPECT_EQ(all_of(exchange, kBeginning).size(), 20U);
  for (int s = 0; s < 100; ++s) {
    EXPECT_FALSE(exchange.due(true, kBeginning + seconds(s)));
  }
}

TEST(Exchange, IsATenthOfTheTimeAtMost) {
  Exchange exchange;
  exchange.note_growth(20 * kFolio);
  exchange.begin({{}, 100 * kFolio}, kBeginning);
  const auto over = kBeginning + seconds(1);
  (void)all_of(exchange, over);
  exchange.note_growth(20 * kFolio);
  (void)exchange.due(true, over);
  EXPECT_FALSE(exchange.due(true, over + seconds(8)));
  EXPECT_TRUE(exchange.due(true, over + seconds(9)));
}

TEST(Exchange, EndsAtOnceWhenTheGuestNeedsItsMemory) {
  Exchange exchange;
  exchange.note_growth(20 * kFolio);
  exchange.begin({{}, 100 * kFolio}, kBeginning);
  ASSERT_TRUE(exchange.next(kFolio, kBeginning));
  exchange.end(kBeginning);
  EXPECT_FALSE(exchange.is_under_way());
  EXPECT_FALSE(exchange.next(kFolio, kBeginning));
}

TEST(Exchange, WhatAnInterruptionLeftIsExchangedLater) {
  Exchange exchange;
  exchange.note_growth(20 * kFolio);
  exchange.begin({{}, 100 * kFolio}, kBeginning);
  ASSERT_TRUE(exchange.next(kFolio, kBeginning));
  exchange.end(kBeginning);
  const auto later = kBeginning + seconds(1);
  (void)exchange.due(true, later);
  ASSERT_TRUE(exchange.due(true, later + Exchange::kStill));
  exchange.begin({{}, 100 * kFolio}, later + Exchange::kStill);
  EXPECT_EQ(all_of(exchange, later + Exchange::kStill).size(), 19U);
}

}  // namespace
}  // namespace fileballoon
