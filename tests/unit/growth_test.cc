// Growth: a balloon that grows when it must not evicts itself or wakes the guest's reclaim, which
// is the failure that made Linux take back its shrinker-based balloon.
#include "fileballoon/growth.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace fileballoon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kBatch = 256;
const Growth::Clock::time_point kStart{seconds(1000)};
const Limits kLimits{Bytes::pages(10000), Bytes(0)};

GuestSample roomy(std::uint64_t resident_pages = 0) {
  return {Bytes::pages(50000), Bytes::pages(1000), Bytes::pages(resident_pages), 0};
}

TEST(Growth, TakesABatchAtATime) {
  Growth growth(kBatch);
  const GrowthDecision d = growth.decide(roomy(), kLimits, kStart);
  EXPECT_EQ(d.reason, GrowthReason::growing);
  EXPECT_EQ(d.pages, kBatch);
}

TEST(Growth, NeverPassesTheTarget) {
  Growth growth(kBatch);
  EXPECT_EQ(growth.decide(roomy(9999), kLimits, kStart).pages, 1U);
  EXPECT_EQ(growth.decide(roomy(10000), kLimits, kStart).reason, GrowthReason::at_target);
  EXPECT_EQ(growth.decide(roomy(10000), kLimits, kStart).pages, 0U);
}

// One in a guest that has been working at something else for a while.
Growth beside_work() {
  Growth growth(kBatch);
  growth.note_others_cpu(10.0, kStart - seconds(1));
  growth.note_others_cpu(11.0, kStart);
  return growth;
}

// Takes a batch, which is there at any time, and says what comes after it.
GrowthReason reason_after_a_batch(Growth& growth, const GuestSample& sample,
                                  Growth::Clock::time_point now) {
  EXPECT_EQ(growth.decide(sample, kLimits, now).reason, GrowthReason::growing);
  growth.note_taken(kBatch);
  return growth.decide(sample, kLimits, now).reason;
}

// Follows the growth until `end` or until nothing is left to take; the pages it took.
std::uint64_t grow_until(Growth& growth, std::uint64_t resident, Growth::Clock::time_point now,
                         Growth::Clock::time_point end, double work = 1.0,
                         const Limits& limits = kLimits) {
  std::uint64_t taken = 0;
  double used = 100;
  growth.note_others_cpu(used, now);
  while (now < end) {
    const GrowthDecision d = growth.decide(roomy(resident + taken), limits, now);
    if (d.reason == GrowthReason::at_target) break;
    if (d.reason == GrowthReason::growing) {
      growth.note_taken(d.pages);
      taken += d.pages;
    }
    const auto step = d.reason == GrowthReason::growing ? milliseconds(1) : d.wait;
    now += std::chrono::duration_cast<Growth::Clock::duration>(step);
    used += work * std::chrono::duration<double>(step).count();
    growth.note_others_cpu(used, now);
  }
  return taken;
}

TEST(Growth, TakesWhatLayFreeSlowlyBesideWork) {
  Growth growth = beside_work();
  const std::uint64_t taken = grow_until(growth, 0, kStart, kStart + milliseconds(500));
  EXPECT_LE(taken, Growth::kPagesBesideWork / 2 + kBatch);
  EXPECT_GE(taken, Growth::kPagesBesideWork / 2 - 2 * kBatch);
}

TEST(Growth, ALargeRiseIsFollowedBesideWorkBeforePoliciesLosePatience) {
  Growth growth = beside_work();
  const Limits limits{Bytes::pages(49000), Bytes(0)};
  const std::uint64_t half = grow_until(growth, 0, kStart, kStart + Growth::kRise / 2, 1.0, limits);
  EXPECT_GT(half, Growth::kPagesBesideWork * 2);
  EXPECT_LE(half, 49000 / 2 + kBatch) << "and evenly";
  const std::uint64_t rest = grow_until(growth, half, kStart + Growth::kRise / 2,
                                        kStart + Growth::kRise + milliseconds(100), 1.0, limits);
  EXPECT_EQ(half + rest, 49000U);
}

TEST(Growth, TakesWhatLayFreeAtOnceInAnIdleGuest) {
  Growth growth(kBatch);
  EXPECT_EQ(grow_until(growth, 0, kStart, kStart + milliseconds(60), 0.1), 10000U);
}

TEST(Growth, IsFastAgainASecondAfterTheWorkHasEnded) {
  Growth growth = beside_work();
  EXPECT_EQ(reason_after_a_batch(growth, roomy(), kStart + milliseconds(999)),
            GrowthReason::beside_work);
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart + seconds(1)).reason, GrowthReason::growing);
}

TEST(Growth, TakesAtOnceBesideWorkWhatAProgramHasGivenUp) {
  Growth growth = beside_work();
  GuestSample full = roomy(2000);
  full.free = full.reserve;  // a program has the rest
  EXPECT_EQ(growth.decide(full, kLimits, kStart).reason, GrowthReason::below_reserve);
  EXPECT_EQ(reason_after_a_batch(growth, roomy(2000), kStart), GrowthReason::growing);
}

TEST(Growth, TakesAtOnceBesideWorkWhatReclaimHadTaken) {
  Growth growth = beside_work();
  EXPECT_EQ(growth.decide(roomy(10000), kLimits, kStart).reason, GrowthReason::at_target);
  EXPECT_EQ(reason_after_a_batch(growth, roomy(5000), kStart), GrowthReason::growing);
}

TEST(Growth, ATargetThatFallsAndRisesIsARise) {
  Growth growth = beside_work();
  EXPECT_EQ(growth.decide(roomy(10000), kLimits, kStart).reason, GrowthReason::at_target);
  EXPECT_EQ(growth.decide(roomy(10000), Limits{}, kStart).reason, GrowthReason::above_target);
  EXPECT_EQ(reason_after_a_batch(growth, roomy(0), kStart), GrowthReason::beside_work);
}

TEST(Growth, DeflatesByWhatIsAbove) {
  Growth growth(kBatch);
  const GrowthDecision d = growth.decide(roomy(10700), kLimits, kStart);
  EXPECT_EQ(d.reason, GrowthReason::above_target);
  EXPECT_EQ(d.pages, 700U) << "an explicit deflate is not cut into batches";
}

TEST(Growth, ATargetInsideAPageIsReached) {
  Growth growth(kBatch);
  const Limits odd{Bytes(10 * kPageSize + 1), Bytes(0)};
  EXPECT_EQ(growth.decide(roomy(10), odd, kStart).reason, GrowthReason::at_target);
  EXPECT_EQ(growth.decide(roomy(11), odd, kStart).pages, 1U);
}

TEST(Growth, StaysQuietForTwoSecondsAfterReclaim) {
  Growth growth(kBatch);
  GuestSample sample = roomy();
  sample.evicted_pages = 1;
  GrowthDecision d = growth.decide(sample, kLimits, kStart);
  EXPECT_EQ(d.reason, GrowthReason::backing_off);
  EXPECT_EQ(d.wait, seconds(2));
  d = growth.decide(sample, kLimits, kStart + milliseconds(1999));
  EXPECT_EQ(d.reason, GrowthReason::backing_off);
  EXPECT_EQ(d.wait, milliseconds(1));
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + seconds(2)).reason, GrowthReason::growing);
}

TEST(Growth, EachFurtherEvictionStartsTheQuietAnew) {
  Growth growth(kBatch);
  GuestSample sample = roomy();
  sample.evicted_pages = 5;
  (void)growth.decide(sample, kLimits, kStart);
  sample.evicted_pages = 6;
  (void)growth.decide(sample, kLimits, kStart + seconds(1));
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + milliseconds(2900)).reason,
            GrowthReason::backing_off);
}

TEST(Growth, ACounterThatStartedAnewIsStillSeenToRise) {
  Growth growth(kBatch);
  GuestSample sample = roomy();
  sample.evicted_pages = 1000;
  (void)growth.decide(sample, kLimits, kStart);
  sample.evicted_pages = 0;
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + seconds(3)).reason, GrowthReason::growing);
  sample.evicted_pages = 3;
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + seconds(4)).reason, GrowthReason::backing_off);
}

TEST(Growth, DeflatesEvenWhileBackingOff) {
  Growth growth(kBatch);
  GuestSample sample = roomy(10001);
  sample.evicted_pages = 9;
  EXPECT_EQ(growth.decide(sample, kLimits, kStart).reason, GrowthReason::above_target);
}

TEST(Growth, LeavesTheReserveFree) {
  Growth growth(kBatch);
  GuestSample sample = roomy();
  sample.free = Bytes::pages(1000 + 100);
  EXPECT_EQ(growth.decide(sample, kLimits, kStart).pages, 100U);
  sample.free = Bytes::pages(1000 + Growth::kMinPages - 1);
  GrowthDecision d = growth.decide(sample, kLimits, kStart);
  EXPECT_EQ(d.reason, GrowthReason::below_reserve);
  EXPECT_EQ(d.wait, Growth::kReserveRetry);
  sample.free = Bytes(0);
  EXPECT_EQ(growth.decide(sample, kLimits, kStart).reason, GrowthReason::below_reserve);
}

TEST(Growth, InAGuestThatWorksFreeMemoryIsLookedForSoonAndAtRestOnceASecond) {
  Growth growth(kBatch);
  GuestSample sample = roomy();
  sample.free = sample.reserve;
  EXPECT_EQ(growth.decide(sample, kLimits, kStart).wait, seconds(1));
  growth.note_work(kStart);
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + seconds(2)).wait, milliseconds(100));
  EXPECT_EQ(growth.decide(sample, kLimits, kStart + seconds(3)).wait, seconds(1))
      << "a guest that has come to rest is woken as before";
}

TEST(Growth, TheLastFewPagesNeedNotFillAWakeUp) {
  Growth growth(kBatch);
  GuestSample sample = roomy(9997);
  sample.free = Bytes::pages(1003);
  EXPECT_EQ(growth.decide(sample, kLimits, kStart).pages, 3U);
}

TEST(Growth, SaysWhyInWords) {
  EXPECT_EQ(to_string(GrowthDecision{GrowthReason::backing_off, 0, milliseconds(1200)}),
            "backing off after reclaim, 1.2 s left");
  EXPECT_EQ(to_string(GrowthDecision{GrowthReason::growing, 1, {}}), "growing");
  EXPECT_EQ(to_string(GrowthDecision{GrowthReason::at_target, 0, {}}), "at target");
  EXPECT_EQ(to_string(GrowthDecision{GrowthReason::above_target, 1, {}}), "deflating to target");
  EXPECT_EQ(to_string(GrowthDecision{GrowthReason::below_reserve, 0, {}}),
            "free memory below reserve");
}

// Lost otherwise: memory taken from tasks that are already waiting for some.
TEST(Growth, PausesWhileTasksWaitForMemoryAndGoesOnSoonAfter) {
  Growth growth(kBatch);
  growth.note_stalls(milliseconds(500), kStart);
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart).reason, GrowthReason::growing)
      << "what was before the first look says nothing about now";
  growth.note_stalls(milliseconds(520), kStart + milliseconds(250));
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart + milliseconds(250)).reason,
            GrowthReason::growing)
      << "8 % of a window is a page or two read back";
  growth.note_stalls(milliseconds(620), kStart + milliseconds(500));
  GrowthDecision d = growth.decide(roomy(), kLimits, kStart + milliseconds(500));
  EXPECT_EQ(d.reason, GrowthReason::pressure);
  EXPECT_EQ(d.wait, seconds(1));
  EXPECT_EQ(to_string(d), "tasks wait for memory, 1.0 s left");
  growth.note_stalls(milliseconds(620), kStart + seconds(1));
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart + milliseconds(1499)).reason,
            GrowthReason::pressure);
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart + milliseconds(1500)).reason,
            GrowthReason::growing);
}

TEST(Growth, WithoutPsiOrWithACounterThatStartsAnewThereIsNoPressure) {
  Growth growth(kBatch);
  growth.note_stalls(std::nullopt, kStart);
  growth.note_stalls(seconds(9), kStart + seconds(1));
  growth.note_stalls(seconds(1), kStart + seconds(2));
  growth.note_stalls(std::nullopt, kStart + seconds(3));
  EXPECT_EQ(growth.decide(roomy(), kLimits, kStart + seconds(3)).reason, GrowthReason::growing);
}

// A deflation that an operator asked for does not wait for anything.
TEST(Growth, PressureDoesNotHoldBackDeflation) {
  Growth growth(kBatch);
  growth.note_stalls(seconds(0), kStart);
  growth.note_stalls(seconds(1), kStart + seconds(1));
  EXPECT_EQ(growth.decide(roomy(10700), kLimits, kStart + seconds(1)).reason,
            GrowthReason::above_target);
}

// Lost otherwise: an operator reads a number, or nothing, where the reason should stand.
TEST(Growth, EveryReasonHasWordsOfItsOwn) {
  std::set<std::string> texts;
  for (int i = 0; i <= static_cast<int>(kLastGrowthReason); ++i) {
    texts.insert(to_string(GrowthDecision{static_cast<GrowthReason>(i), 0, milliseconds(1200)}));
  }
  EXPECT_EQ(texts.size(), static_cast<std::size_t>(kLastGrowthReason) + 1);
  EXPECT_FALSE(texts.contains("unknown"));
  EXPECT_TRUE(texts.contains("backing off after reclaim, 1.2 s left"));
}

}  // namespace
}  // namespace fileballoon
