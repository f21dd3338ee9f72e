// Relief: a guest under pressure is asked for what costs it least, in order, before anything of it
// is paged out; and a clock that jumps must not make the host skip the asking.
#include "fileballoon/relief.h"

#include <gtest/gtest.h>

namespace fileballoon {
namespace {

using namespace std::chrono_literals;
using Step = Relief::Step;

class ReliefTest : public ::testing::Test {
 protected:
  Step after(std::chrono::milliseconds time, bool is_pressed = true) {
    now += time;
    return relief.step(is_pressed, now);
  }
  Relief relief;
  Relief::Clock::time_point now{1000s};
};

TEST_F(ReliefTest, TheEpochComesFirstThenThePurgeThenForce) {
  EXPECT_EQ(after(0ms), Step::none);
  EXPECT_EQ(after(1s), Step::none);
  EXPECT_EQ(after(1s), Step::advance_epoch);
  EXPECT_EQ(after(1s), Step::none);
  EXPECT_EQ(after(2s), Step::purge);
  EXPECT_FALSE(relief.may_force()) << "what a purge gives is seen a moment later";
  EXPECT_EQ(after(2s), Step::none);
  EXPECT_TRUE(relief.may_force());
}

TEST_F(ReliefTest, AskingIsRepeatedButNotAllTheTime) {
  int epochs = 0;
  int purges = 0;
  for (int second = 0; second < 100; ++second) {
    const Step step = after(1s);
    epochs += step == Step::advance_epoch ? 1 : 0;
    purges += step == Step::purge ? 1 : 0;
  }
  EXPECT_GE(epochs, 3);
  EXPECT_LE(epochs, 4);
  EXPECT_GE(purges, 3);
  EXPECT_LE(purges, 4);
}

TEST_F(ReliefTest, WhereThePressureEndsEverythingBeginsAnew) {
  for (int second = 0; second < 20; ++second) {
    (void)after(1s);
  }
  ASSERT_TRUE(relief.may_force());
  EXPECT_EQ(after(1s, false), Step::none);
  EXPECT_FALSE(relief.may_force());
  EXPECT_EQ(after(1s), Step::none);
  EXPECT_EQ(after(1s), Step::advance_epoch);
}

TEST_F(ReliefTest, AClockThatJumpsSkipsNoStep) {
  EXPECT_EQ(after(0ms), Step::none);
  EXPECT_EQ(after(24h), Step::advance_epoch) << "counts as two seconds";
  EXPECT_FALSE(relief.may_force());
  now -= 48h;
  EXPECT_EQ(after(0ms), Step::none);
  EXPECT_FALSE(relief.may_force());
}

}  // namespace
}  // namespace fileballoon
