// How readers wait: CrowdedCpus and WaitChoice.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "uffd/crowded_cpus.h"
#include "uffd/pager/wait_choice.h"

namespace fileballoon {
namespace {

using namespace std::chrono_literals;
using Time = CrowdedCpus::Clock::time_point;

TEST(CrowdedCpus, ShortWaitsAreNoCrowd) {
  CrowdedCpus crowded(500us);
  crowded.gave_way(500us, Time(1s));
  EXPECT_FALSE(crowded.at(Time(1s)));
}

TEST(CrowdedCpus, OneLongWaitIsBelievedForMilliseconds) {
  CrowdedCpus crowded(500us);
  crowded.gave_way(3ms, Time(1s));
  EXPECT_TRUE(crowded.at(Time(1s)));
  EXPECT_FALSE(crowded.at(Time(1s) + CrowdedCpus::kShortestBelief));
}

TEST(CrowdedCpus, BeliefGrowsWhileItIsFoundTrueAtOnceAndHasAnEnd) {
  CrowdedCpus crowded(500us);
  Time now(1s);
  CrowdedCpus::Clock::duration longest{};
  int looks = 0;
  for (; looks < 100; ++looks) {
    crowded.gave_way(3ms, now);
    const Time began = now;
    while (crowded.at(now)) {
      now += 1ms;
    }
    longest = std::max(longest, now - began);
  }
  EXPECT_EQ(longest, CrowdedCpus::kLongestBelief);
  // A look costs a time slice: all but the first few are a second apart.
  EXPECT_GT(now - Time(1s), 90s);
}

TEST(CrowdedCpus, AFreeTimeEndsWhatWasLearned) {
  CrowdedCpus crowded(500us);
  Time now(1s);
  for (int i = 0; i < 20; ++i) {
    crowded.gave_way(3ms, now);
    while (crowded.at(now)) {
      now += 1ms;
    }
  }
  now += 10s;
  crowded.gave_way(3ms, now);
  EXPECT_FALSE(crowded.at(now + CrowdedCpus::kShortestBelief));
}

// Reads that take so long, by the way of waiting; how many of them waited awake.
int awake_reads(WaitChoice& choice, std::chrono::nanoseconds awake, std::chrono::nanoseconds asleep,
                int reads) {
  int count = 0;
  for (int i = 0; i < reads; ++i) {
    const bool is_awake = choice.awake();
    count += is_awake ? 1 : 0;
    choice.took(is_awake ? awake : asleep);
  }
  return count;
}

TEST(WaitChoice, TakesTheQuickerWayAndTriesTheOtherNowAndThen) {
  WaitChoice choice;
  (void)awake_reads(choice, 150us, 100us, 200);
  const int reads = 100'000;
  const int awake = awake_reads(choice, 150us, 100us, reads);
  EXPECT_GT(awake, 0);
  EXPECT_LT(awake, reads / 25);
}

TEST(WaitChoice, FollowsTheMachine) {
  WaitChoice choice;
  (void)awake_reads(choice, 150us, 100us, 5'000);
  (void)awake_reads(choice, 100us, 150us, 5'000);
  const int reads = 100'000;
  EXPECT_GT(awake_reads(choice, 100us, 150us, reads), reads * 24 / 25);
}

TEST(WaitChoice, ALittleQuickerIsChance) {
  WaitChoice choice;
  const int reads = 100'000;
  EXPECT_LT(awake_reads(choice, 97us, 100us, reads), reads / 25);
}

TEST(WaitChoice, OneVeryLongReadChangesNothing) {
  WaitChoice choice;
  (void)awake_reads(choice, 100us, 120us, 5'000);
  choice.took(3s);
  const int reads = 10'000;
  EXPECT_GT(awake_reads(choice, 100us, 120us, reads), reads * 24 / 25);
}

}  // namespace
}  // namespace fileballoon
