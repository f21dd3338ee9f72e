// GiveWay: if these fail, a program that fills memory loses the files it uses to reclaim that need
// not have been woken, or a balloon is given up for nothing.
#include "fileballoon/give_way.h"

#include <gtest/gtest.h>

namespace fileballoon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Bytes kWatermark = Bytes::mib(60);

class GiveWayTest : public testing::Test {
 protected:
  std::uint64_t look(Bytes free, milliseconds after = GiveWay::kLook) {
    return way_.look(free, kWatermark, now_ += after);
  }
  GiveWay way_;
  GiveWay::Clock::time_point now_{seconds(1000)};
};

TEST_F(GiveWayTest, AGuestThatTakesNothingIsGivenNothing) {
  for (int i = 0; i < 100; ++i) EXPECT_EQ(look(kWatermark + Bytes::mib(1)), 0U);
}

TEST_F(GiveWayTest, WhatIsTakenFastIsGivenBeforeTheWatermarkIsReached) {
  EXPECT_EQ(look(Bytes::mib(100)), 0U);
  EXPECT_EQ(look(Bytes::mib(90)), 0U);  // 200 MiB/s: 30 MiB in the time ahead are still there
  const std::uint64_t given = look(Bytes::mib(80));
  EXPECT_GE(Bytes::pages(given), Bytes::mib(50));
  EXPECT_LE(Bytes::pages(given), GiveWay::kMost);
}

TEST_F(GiveWayTest, ABurstThatIsOverByTheNextLookIsNoReason) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(look(Bytes::mib(92)), 0U);
    EXPECT_EQ(look(Bytes::mib(80)), 0U);  // written to a file, which is removed
  }
}

TEST_F(GiveWayTest, ASlowReaderMayComeCloseToTheWatermark) {
  Bytes free = Bytes::mib(90);
  while (free > kWatermark + Bytes::mib(2)) {  // 5 MiB/s
    ASSERT_EQ(look(free), 0U) << to_string(free);
    free = free - Bytes(256 << 10);
  }
  EXPECT_LE(Bytes::pages(look(kWatermark)), Bytes::mib(16));
}

TEST_F(GiveWayTest, WhatWasGivenIsNotTakenForFreeMemoryThatNobodyTakes) {
  (void)look(Bytes::mib(110));
  (void)look(Bytes::mib(90));
  const std::uint64_t given = look(Bytes::mib(70));  // 400 MiB/s
  ASSERT_GT(given, 0U);
  way_.gave(given);
  // It rose by what was given less another 20 MiB: the guest goes on taking at the same rate.
  EXPECT_GT(look(Bytes::mib(70) + Bytes::pages(given) - Bytes::mib(20) - Bytes::mib(44)), 0U);
}

TEST_F(GiveWayTest, MovementOfTheBalloonsOwnMakesNoRate) {
  (void)look(Bytes::mib(500));
  way_.forget();
  EXPECT_EQ(look(Bytes::mib(70)), 0U);
}

TEST_F(GiveWayTest, AClockThatJumpsBackAndMemoryThatRisesAreSurvived) {
  (void)look(Bytes::mib(100));
  EXPECT_EQ(way_.look(Bytes::mib(80), kWatermark, now_ - seconds(50)), 0U);
  EXPECT_EQ(way_.look(Bytes::mib(500), kWatermark, now_ - seconds(49)), 0U);
}

}  // namespace
}  // namespace fileballoon
