// The pressure signal of a guest: if it were late, missing or false, the arbiter would let a guest
// starve, or take others' memory for nothing.
#include "fileballoon/deflation_meter.h"

#include <gtest/gtest.h>

namespace fileballoon {
namespace {

using namespace std::chrono_literals;
using Change = DeflationMeter::Change;

class Deflation : public ::testing::Test {
 protected:
  DeflationMeter meter_{Bytes::gib(4)};  // fast from 32 MiB in a second
  DeflationMeter::Clock::time_point now_{1h};
};

TEST_F(Deflation, ATrickleIsNoEpisodeAndIsCountedAllTheSame) {
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(meter_.add(Bytes(64 << 10), now_), Change::none);
    now_ += 200ms;
  }
  EXPECT_EQ(meter_.total(), Bytes(6400 << 10));
  EXPECT_FALSE(meter_.deflating());
}

TEST_F(Deflation, AnEpisodeBeginsBecomesFastAndEndsOnce) {
  EXPECT_EQ(meter_.add(Bytes(512 << 10), now_), Change::none);
  EXPECT_EQ(meter_.add(Bytes(512 << 10), now_ += 50ms), Change::began);
  EXPECT_EQ(meter_.episode(), Bytes::mib(1)) << "what led to it is part of it";
  EXPECT_EQ(meter_.add(Bytes::mib(16), now_ += 50ms), Change::none);
  EXPECT_FALSE(meter_.fast());
  EXPECT_EQ(meter_.add(Bytes::mib(16), now_ += 100ms), Change::became_fast);
  EXPECT_EQ(meter_.add(Bytes::mib(100), now_ += 100ms), Change::none) << "said once";
  EXPECT_EQ(meter_.look(now_ += 1900ms), Change::none);
  EXPECT_EQ(meter_.look(now_ += 200ms), Change::ended);
  EXPECT_EQ(meter_.look(now_ += 1s), Change::none);
  EXPECT_EQ(meter_.episode(), Bytes::mib(133));
  EXPECT_EQ(meter_.episode_length(), 250ms);
}

TEST_F(Deflation, TheRateIsThatOfTheLastSecond) {
  (void)meter_.add(Bytes::mib(10), now_);
  EXPECT_EQ(meter_.per_second(now_ + 500ms), Bytes::mib(10));
  (void)meter_.add(Bytes::mib(5), now_ + 700ms);
  EXPECT_EQ(meter_.per_second(now_ + 700ms), Bytes::mib(15));
  EXPECT_EQ(meter_.per_second(now_ + 1100ms), Bytes::mib(5));
  EXPECT_EQ(meter_.per_second(now_ + 1h), Bytes(0));
}

TEST_F(Deflation, OneLargeStepIsFastAtOnce) {
  EXPECT_EQ(meter_.add(Bytes::mib(64), now_), Change::became_fast);
  EXPECT_TRUE(meter_.deflating());
}

TEST_F(Deflation, ALaterEpisodeCountsFromZero) {
  (void)meter_.add(Bytes::mib(2), now_);
  EXPECT_EQ(meter_.look(now_ += 3s), Change::ended);
  EXPECT_EQ(meter_.add(Bytes::mib(3), now_), Change::began);
  EXPECT_EQ(meter_.episode(), Bytes::mib(3));
  EXPECT_EQ(meter_.total(), Bytes::mib(5));
}

}  // namespace
}  // namespace fileballoon
