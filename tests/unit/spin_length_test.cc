#include "uffd/spin_length.h"

#include <gtest/gtest.h>

#include <chrono>

namespace fileballoon {
namespace {

using namespace std::chrono_literals;

constexpr auto kLongest = 100us;
const SpinLength::Clock::time_point kNever{};

class SpinLengthTest : public testing::Test {
 protected:
  // Asleep for `sleep`; another's answer ended `after_answer` before the wake-up, if it is not
  // zero.
  void sleeps(std::chrono::microseconds sleep, std::chrono::microseconds after_answer = 0us) {
    const auto from = now_ + 10ms;
    now_ = from + sleep;
    spin_.slept(from, now_, after_answer == 0us ? kNever : now_ - after_answer);
  }

  SpinLength::Clock::time_point now_{1h};
  SpinLength spin_{kLongest};
};

TEST_F(SpinLengthTest, LongSleepsMakeItShorterUntilItIsNone) {
  EXPECT_EQ(spin_.length(), kLongest);
  sleeps(5ms);
  EXPECT_EQ(spin_.length(), kLongest / 2);
  for (int i = 0; i < 10; ++i) sleeps(5ms);
  EXPECT_EQ(spin_.length(), 0us);
}

TEST_F(SpinLengthTest, ShortSleepsMakeItLongerUpToTheLongest) {
  for (int i = 0; i < 10; ++i) sleeps(5ms);
  sleeps(20us);
  EXPECT_EQ(spin_.length(), SpinLength::kShortest);
  for (int i = 0; i < 10; ++i) sleeps(20us);
  EXPECT_EQ(spin_.length(), kLongest);
}

TEST_F(SpinLengthTest, TimeInWhichAnotherAnsweredIsNoSleep) {
  for (int i = 0; i < 10; ++i) sleeps(5ms);
  for (int i = 0; i < 10; ++i) sleeps(150us, 8us);  // a disk's answer, and the next fault at once
  EXPECT_EQ(spin_.length(), kLongest);
}

TEST_F(SpinLengthTest, AnAnswerLongAgoOrBeforeTheSleepChangesNothing) {
  sleeps(5ms, 3ms);
  EXPECT_EQ(spin_.length(), kLongest / 2);
  sleeps(5ms, 20ms);
  EXPECT_EQ(spin_.length(), kLongest / 4);
}

TEST(SpinLength, WithoutALongestThereIsNothingToLearn) {
  SpinLength spin{0us};
  const SpinLength::Clock::time_point now{1h};
  spin.slept(now, now + 1us, kNever);
  EXPECT_EQ(spin.length(), 0us);
}

}  // namespace
}  // namespace fileballoon
