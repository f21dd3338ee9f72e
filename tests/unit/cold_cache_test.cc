// Cold page cache: if these fail, a guest either keeps cache that nobody uses, or loses cache that
// somebody does, or an operator is not told why a mode does nothing.
#include "fileballoon/cold_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fileballoon/cold_cache_pace.h"
#include "fileballoon/cold_cache_turn.h"

namespace fileballoon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

TEST(CacheMode, EverySpellingThatIsPrintedIsAccepted) {
  for (int i = 0; i <= static_cast<int>(kLastCacheMode); ++i) {
    const auto mode = static_cast<CacheMode>(i);
    EXPECT_EQ(parse_cache_mode(to_string(mode)).value(), mode);
  }
}

TEST(CacheMode, AnUnknownModeIsNamedWithWhatIsAccepted) {
  const auto result = parse_cache_mode("agressive");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().message,
            "\"agressive\" is not a cache mode; use one of: off, unmapped-first, proactive, epoch");
}

TEST(ChooseMethod, AKernelWithEverythingWorksByGenerationsAndHasNothingToExplain) {
  for (const CacheMode mode : {CacheMode::unmapped_first, CacheMode::proactive, CacheMode::epoch}) {
    const MethodChoice choice = choose_method(mode, {});
    EXPECT_EQ(choice.method, ReclaimMethod::generations);
    EXPECT_EQ(choice.note, "");
  }
}

TEST(ChooseMethod, OffIsOffWhateverLacks) {
  ReclaimFeatures features;
  features.generations_missing = "no debugfs";
  const MethodChoice choice = choose_method(CacheMode::off, features);
  EXPECT_EQ(choice.method, ReclaimMethod::none);
  EXPECT_EQ(choice.note, "");
}

TEST(ChooseMethod, WithoutGenerationsStepsAreTakenAndTheReasonIsSaid) {
  ReclaimFeatures features;
  features.generations_missing = "debugfs is not there";
  const MethodChoice choice = choose_method(CacheMode::epoch, features);
  EXPECT_EQ(choice.method, ReclaimMethod::steps);
  EXPECT_EQ(choice.note, "epoch: in small steps of memory.reclaim, debugfs is not there");
}

TEST(ChooseMethod, WithNeitherBothReasonsAreSaid) {
  ReclaimFeatures features;
  features.generations_missing = "debugfs is not there";
  features.steps_missing = "cgroup v1 has no memory.reclaim";
  const MethodChoice choice = choose_method(CacheMode::proactive, features);
  EXPECT_EQ(choice.method, ReclaimMethod::none);
  EXPECT_EQ(choice.note,
            "proactive: not possible, debugfs is not there; and cgroup v1 has no memory.reclaim");
}

TEST(ChooseMethod, ABalloonThatSharesItsCgroupIsNeverFedToItself) {
  ReclaimFeatures features;
  features.balloon_cgroup_missing = "no cgroup could be made";
  for (const CacheMode mode : {CacheMode::unmapped_first, CacheMode::proactive, CacheMode::epoch}) {
    EXPECT_EQ(choose_method(mode, features).method, ReclaimMethod::none);
  }
}

TEST(ChooseMethod, OnlyTheHostsEpochsDoWithoutRefaultCounts) {
  ReclaimFeatures features;
  features.refaults_missing = "no workingset_refault_file";
  EXPECT_EQ(choose_method(CacheMode::proactive, features).method, ReclaimMethod::none);
  EXPECT_EQ(choose_method(CacheMode::unmapped_first, features).method, ReclaimMethod::none);
  EXPECT_EQ(choose_method(CacheMode::epoch, features).method, ReclaimMethod::generations);
}

TEST(ChooseMethod, WithoutPsiThePaceIsHeldByRefaultsAndItSaysSo) {
  ReclaimFeatures features;
  features.pressure_missing = "no /proc/pressure/memory";
  const MethodChoice choice = choose_method(CacheMode::proactive, features);
  EXPECT_EQ(choice.method, ReclaimMethod::generations);
  EXPECT_EQ(choice.note, "proactive: paced by refaults alone, no /proc/pressure/memory");
}

class Pace : public testing::Test {
 protected:
  void look(milliseconds after, std::uint64_t refaulted = 0, milliseconds stalled = {}) {
    now_ += after;
    refaulted_ += refaulted;
    stalled_ += stalled;
    pace_.look({now_, refaulted_, stalled_});
  }
  /// Looks a few times without harm and lets the kernel take all that is allowed.
  void run_freely(int looks) {
    for (int i = 0; i < looks; ++i) {
      look(milliseconds(250));
      pace_.evicted(pace_.allowance());
    }
  }

  CachePace pace_;
  CachePace::Clock::time_point now_{seconds(1000)};
  std::uint64_t refaulted_ = 5'000'000;  // since boot: not ours
  std::chrono::microseconds stalled_{seconds(77)};
};

TEST_F(Pace, StartsSmallGrowsWhileNobodyMissesAnythingAndIsBounded) {
  look(milliseconds(0));
  look(milliseconds(100));
  EXPECT_EQ(pace_.allowance(), CachePace::kFirstStep) << "nothing was taken that could be missed";
  run_freely(3);
  EXPECT_EQ(pace_.allowance(), CachePace::kFirstStep * CachePace::kGrowth * CachePace::kGrowth);
  run_freely(10);
  EXPECT_EQ(pace_.allowance(), CachePace::kLastStep);
  EXPECT_EQ(pace_.brakes(), 0U);
}

TEST_F(Pace, ALargeCacheGoesInLargerSteps) {
  const std::uint64_t cache = CachePace::kLastStep * CachePace::kLastShare * 8;
  for (int i = 0; i < 20; ++i) {
    now_ += milliseconds(250);
    pace_.look({now_, refaulted_, stalled_, cache});
    pace_.evicted(pace_.allowance());
  }
  EXPECT_EQ(pace_.allowance(), cache / CachePace::kLastShare);
}

TEST_F(Pace, BrakesWhenWhatWasTakenComesBack) {
  run_freely(6);
  look(milliseconds(250), 8000);
  EXPECT_EQ(pace_.state(), CachePace::State::refaulting);
  EXPECT_EQ(pace_.allowance(), 0U);
  EXPECT_EQ(pace_.brake_end() - now_, CachePace::kBrake);
  EXPECT_EQ(pace_.caution(), 2U);
}

TEST_F(Pace, HarmThatWasExpectedIsAShortBrakeWithoutCaution) {
  run_freely(6);
  now_ += milliseconds(250);
  pace_.look({now_, refaulted_ += 8000, stalled_, 0, true});
  EXPECT_EQ(pace_.state(), CachePace::State::refaulting);
  EXPECT_EQ(pace_.brake_end() - now_, CachePace::kShortBrake);
  EXPECT_EQ(pace_.caution(), 1U);
}

TEST_F(Pace, AfterABrakeItBeginsWithAFirstBite) {
  run_freely(6);
  look(milliseconds(250), 8000);
  look(CachePace::kBrake);
  EXPECT_EQ(pace_.allowance(), CachePace::kFirstStep);
}

TEST_F(Pace, RefaultsDuringABrakeAreNotPunishedTwice) {
  run_freely(6);
  look(milliseconds(250), 8000);
  look(milliseconds(250), 8000);
  look(milliseconds(250), 8000);
  EXPECT_EQ(pace_.brakes(), 1U);
  look(milliseconds(500), 100);
  EXPECT_EQ(pace_.state(), CachePace::State::free);
}

TEST_F(Pace, EachFurtherHarmDoublesTheCautionUpToABound) {
  look(milliseconds(0));
  unsigned expected = 1;
  for (int i = 0; i < 10; ++i) {
    pace_.evicted(CachePace::kFirstStep);
    look(milliseconds(100), CachePace::kFirstStep);
    ASSERT_EQ(pace_.state(), CachePace::State::refaulting);
    expected = std::min(expected * 2, CachePace::kMostCaution);
    EXPECT_EQ(pace_.caution(), expected);
    look(std::chrono::duration_cast<milliseconds>(pace_.brake_end() - now_));
  }
  pace_.forgive();
  EXPECT_EQ(pace_.caution(), 1U);
}

TEST_F(Pace, CautionFadesWhenCalmLasts) {
  run_freely(6);
  look(milliseconds(250), 8000);
  ASSERT_EQ(pace_.caution(), 2U);
  for (int i = 0; i < 30; ++i) {
    look(milliseconds(500));
  }
  EXPECT_EQ(pace_.caution(), 1U);
}

TEST_F(Pace, AGrowingWorkingSetIsNotBlamedOnEvictionsOfLongAgo) {
  run_freely(6);
  look(seconds(60));  // nothing more to evict, for a minute
  look(milliseconds(250), 100'000);
  EXPECT_EQ(pace_.state(), CachePace::State::free);
}

TEST_F(Pace, AFewRefaultsAreChance) {
  run_freely(6);
  for (int i = 0; i < 8; ++i) {
    look(milliseconds(250), 10);
    pace_.evicted(pace_.allowance());
  }
  EXPECT_EQ(pace_.brakes(), 0U);
}

TEST_F(Pace, BrakesWhenTasksStallForMemory) {
  run_freely(6);
  look(milliseconds(500), 0, milliseconds(100));
  EXPECT_EQ(pace_.state(), CachePace::State::stalling);
}

TEST_F(Pace, AGuestThatStallsThoughNothingWasTakenIsNotHarmedByUs) {
  look(milliseconds(0));
  for (int i = 0; i < 20; ++i) {
    look(milliseconds(500), 0, milliseconds(100));
  }
  EXPECT_EQ(pace_.brakes(), 0U);
}

TEST_F(Pace, AStallDoesNotMakeColdPagesWaitLonger) {
  run_freely(6);
  look(milliseconds(500), 0, milliseconds(100));
  EXPECT_EQ(pace_.caution(), 1U);
}

TEST_F(Pace, AStallOfAMillisecondInASecondIsNone) {
  for (int i = 0; i < 60; ++i) {
    look(seconds(1), 0, milliseconds(1));
  }
  EXPECT_EQ(pace_.brakes(), 0U);
}

TEST_F(Pace, WithoutPsiRefaultsAloneHoldIt) {
  pace_.look({now_, 0, std::nullopt});
  pace_.evicted(4096);
  pace_.look({now_ + milliseconds(100), 4096, std::nullopt});
  EXPECT_EQ(pace_.state(), CachePace::State::refaulting);
}

TEST_F(Pace, CountersThatRunBackwardsAndClockJumpsAreSurvived) {
  run_freely(6);
  pace_.look({now_ - seconds(500), 3, stalled_});
  pace_.look({now_ - seconds(499), 3, stalled_});
  EXPECT_EQ(pace_.state(), CachePace::State::free);
}

constexpr GenerationTurn::Clock::time_point kFirst{seconds(50)};
constexpr seconds kPatience{1};
using Step = GenerationTurn::Step;

TEST(GenerationTurn, AgesUntilTheOldestIsClosedWaitsThenEvictsItAndBeginsAnew) {
  GenerationTurn turn;
  auto decision = turn.decide({7, 8, 500, 900}, kFirst, kPatience);
  EXPECT_EQ(decision.step, Step::age);
  EXPECT_EQ(decision.generation, 8U);
  EXPECT_EQ(turn.decide({7, 9, 500, 900}, kFirst, kPatience).step, Step::age);
  decision = turn.decide({7, 10, 500, 900}, kFirst, kPatience);
  EXPECT_EQ(decision.step, Step::wait);
  EXPECT_EQ(decision.due, kFirst + kPatience);
  decision = turn.decide({7, 10, 500, 900}, kFirst + kPatience, kPatience);
  EXPECT_EQ(decision.step, Step::evict);
  EXPECT_EQ(decision.generation, 7U);
  turn.evicted(256);
  EXPECT_EQ(turn.decide({7, 10, 244, 644}, kFirst + kPatience, kPatience).step, Step::evict);
  turn.evicted(244);
  EXPECT_EQ(turn.decide({8, 10, 300, 400}, kFirst + kPatience, kPatience).step, Step::done);
  EXPECT_EQ(turn.decide({8, 10, 300, 400}, kFirst + kPatience, kPatience).step, Step::age);
}

TEST(GenerationTurn, NeverAgesWhileTheOldestOfFourHoldsPages) {
  // It would forget how often they were read and make hot pages look cold.
  GenerationTurn turn;
  for (int i = 0; i < 100; ++i) {
    const auto decision =
        turn.decide({3, 6, 1000, 2000}, kFirst + milliseconds(i * 100), kPatience);
    ASSERT_NE(decision.step, Step::age);
    if (decision.step == Step::evict) {
      turn.evicted(64);
    }
  }
}

TEST(GenerationTurn, GivesUpAGenerationThatTheKernelCannotEmpty) {
  GenerationTurn turn;
  const GenerationView dirty{3, 6, 1000, 2000};
  ASSERT_EQ(turn.decide(dirty, kFirst, kPatience).step, Step::wait);
  for (unsigned i = 0; i < GenerationTurn::kFruitless; ++i) {
    ASSERT_EQ(turn.decide(dirty, kFirst + kPatience, kPatience).step, Step::evict);
    turn.evicted(0);
  }
  EXPECT_EQ(turn.decide(dirty, kFirst + kPatience, kPatience).step, Step::done);
  EXPECT_EQ(turn.decide(dirty, kFirst + kPatience, kPatience).step, Step::age);
}

TEST(GenerationTurn, ARestartCountsAnewFromNow) {
  GenerationTurn turn;
  const GenerationView view{10, 13, 500, 900};
  const auto start = GenerationTurn::Clock::time_point(seconds(10));
  EXPECT_EQ(turn.decide(view, start, seconds(2)).step, GenerationTurn::Step::wait);
  turn.restart();
  const auto later = start + seconds(1);
  const auto aged = turn.decide(view, later, seconds(2));
  EXPECT_EQ(aged.step, GenerationTurn::Step::age) << "so that the kernel forgets its counts";
  const GenerationView after{11, 14, 700, 900};
  const auto waits = turn.decide(after, later, seconds(2));
  EXPECT_EQ(waits.step, GenerationTurn::Step::wait);
  EXPECT_EQ(waits.due, later + seconds(2));
  EXPECT_EQ(turn.decide(after, later + seconds(2), seconds(2)).step, GenerationTurn::Step::evict);
}

TEST(GenerationTurn, FollowsWhenTheKernelsOwnReclaimMovesTheListOn) {
  GenerationTurn turn;
  ASSERT_EQ(turn.decide({3, 6, 1000, 2000}, kFirst, kPatience).step, Step::wait);
  EXPECT_EQ(turn.decide({5, 8, 10, 20}, kFirst + milliseconds(1), kPatience).step, Step::done);
  EXPECT_EQ(turn.decide({5, 8, 10, 20}, kFirst + milliseconds(1), kPatience).step, Step::wait);
}

TEST(GenerationTurn, ALongerPatienceHoldsForATurnThatHasBegun) {
  GenerationTurn turn;
  const GenerationView view{3, 6, 1000, 2000};
  ASSERT_EQ(turn.decide(view, kFirst, seconds(1)).step, Step::wait);
  EXPECT_EQ(turn.decide(view, kFirst + seconds(2), seconds(8)).step, Step::wait);
  EXPECT_EQ(turn.decide(view, kFirst + seconds(8), seconds(8)).step, Step::evict);
}

TEST(GenerationTurn, AClockThatJumpsBackDoesNotStopItForEver) {
  GenerationTurn turn;
  const GenerationView view{3, 6, 1000, 2000};
  ASSERT_EQ(turn.decide(view, kFirst, kPatience).step, Step::wait);
  EXPECT_EQ(turn.decide(view, kFirst - seconds(40), kPatience).step, Step::done);
  ASSERT_EQ(turn.decide(view, kFirst - seconds(40), kPatience).step, Step::wait);
  EXPECT_EQ(turn.decide(view, kFirst - seconds(39), kPatience).step, Step::evict);
}

TEST(EpochClock, TheFirstEpochIsOnlyAStartingPoint) {
  EpochClock epochs;
  epochs.set(41);
  EXPECT_FALSE(epochs.due(kFirst));
  epochs.set(42);
  EXPECT_TRUE(epochs.due(kFirst));
}

TEST(EpochClock, TheSameEpochAgainIsNoStep) {
  EpochClock epochs;
  epochs.set(5);
  epochs.set(5);
  EXPECT_FALSE(epochs.due(kFirst));
}

TEST(EpochClock, AThousandStepsASecondAreOneTurnASecond) {
  EpochClock epochs;
  epochs.set(0);
  std::uint64_t turns = 0;
  for (std::uint64_t i = 1; i <= 10'000; ++i) {
    const auto now = kFirst + milliseconds(i);
    epochs.set(i);
    if (epochs.due(now)) {
      epochs.begin(now);
      ++turns;
    }
  }
  EXPECT_EQ(turns, 10U);
  EXPECT_EQ(epochs.turns(), 10U);
  // The last steps are not lost: they are served when the second is over.
  ASSERT_TRUE(epochs.next().has_value());
  EXPECT_TRUE(epochs.due(*epochs.next()));
  epochs.begin(*epochs.next());
  EXPECT_EQ(epochs.served(), 10'000U);
  EXPECT_FALSE(epochs.next().has_value());
}

TEST(EpochClock, AHostThatCountsAnewStartsAnew) {
  EpochClock epochs;
  epochs.set(900);
  epochs.set(901);
  epochs.begin(kFirst);
  epochs.set(0);
  EXPECT_FALSE(epochs.due(kFirst + seconds(10)));
  epochs.set(1);
  EXPECT_TRUE(epochs.due(kFirst + seconds(10)));
}

}  // namespace
}  // namespace fileballoon
