// ColdCache against a simulated kernel: if these fail, hot or dirty cache is taken, cold cache
// stays, or an order of the host is lost or obeyed without measure.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "guest-fs/reclaim/cold_cache.h"
#include "guest-fs/reclaim/cold_cache_thread.h"

namespace fileballoon::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// One list of at most four generations with the kernel's rules for pages that are read: they join
/// the oldest generation, or the second oldest of four; a used page survives the scan that finds
/// it.
class SimulatedKernel final : public CacheKernel {
 public:
  SimulatedKernel() { numbers_.stalled = std::chrono::microseconds(0); }

  struct Page {
    std::uint64_t generation;
    std::uint64_t index;
  };

  [[nodiscard]] const ReclaimFeatures& features() const override { return features_; }
  [[nodiscard]] CacheNumbers numbers() override {
    numbers_.file = pages() + balloon_pages_;
    return numbers_;
  }
  [[nodiscard]] std::vector<CacheList> lists() override {
    CacheList list{1, 0, {}, evicted_in_use_};
    list.view.youngest = youngest_;
    list.view.oldest = youngest_;
    for (std::uint64_t g = first(); g <= youngest_; ++g) {
      if (list.view.file_pages == 0) {
        list.view.oldest = g;
        list.view.oldest_pages = at(g);
      }
      list.view.file_pages += at(g);
    }
    return {list};
  }
  [[nodiscard]] int age(const CacheList&, std::uint64_t youngest) override {
    if (youngest != youngest_) {
      return EEXIST;
    }
    ++ages_;
    const std::uint64_t merged = first();
    ++youngest_;
    if (merged < first()) {
      at(first()) += at(merged);
      unproven_ += hot(merged);  // a merge forgets what was used
      merges_with_pages_ += at(merged) > 0 ? 1 : 0;
    }
    at(youngest_) = hot(youngest_) = 0;
    return 0;
  }
  [[nodiscard]] Taken evict(const CacheList&, std::uint64_t generation,
                            std::uint64_t pages) override {
    if (generation + 2 > youngest_) {
      return {0, EINVAL};
    }
    std::uint64_t taken = 0;
    for (std::uint64_t g = first(); g <= generation; ++g) {
      at(g + 1) += hot(g);
      at(g) -= hot(g);
      unproven_ += hot(g);  // in use, but not seen to be since it was moved
      hot(g) = 0;
      const std::uint64_t now = at(g) > stuck_ ? std::min(at(g) - stuck_, pages - taken) : 0;
      at(g) -= now;
      taken += now;
    }
    largest_ = std::max(largest_, taken);
    if (evicted_in_use_) *evicted_in_use_ += std::min(in_use_, taken);
    return {taken, 0};
  }
  [[nodiscard]] Taken step(std::uint64_t pages) override {
    std::uint64_t taken = 0;
    for (std::uint64_t g = first(); g <= youngest_ && taken < pages; ++g) {
      const std::uint64_t now = std::min(at(g), pages - taken);
      at(g) -= now;
      taken += now;
    }
    largest_ = std::max(largest_, taken);
    return {taken, 0};
  }

  void read(std::uint64_t pages, bool is_hot = false) {
    const std::uint64_t g = youngest_ - first() + 1 >= 4 ? first() + 1 : first();
    at(g) += pages;
    hot(g) += is_hot ? pages : 0;
  }
  /// What was in use is used again: the next scan will spare it.
  void use_again() {
    for (std::uint64_t g = youngest_ + 1; g-- > first() && unproven_ > 0;) {
      const std::uint64_t now = std::min(at(g) - hot(g), unproven_);
      hot(g) += now;
      unproven_ -= now;
    }
  }
  [[nodiscard]] std::uint64_t pages() {
    std::uint64_t sum = 0;
    for (std::uint64_t g = first(); g <= youngest_; ++g) {
      sum += at(g);
    }
    return sum;
  }

  ReclaimFeatures features_;
  CacheNumbers numbers_;
  std::uint64_t balloon_pages_ = 0;
  std::uint64_t in_use_ = 0;  ///< of each bite, pages that were read twice or more
  std::optional<std::uint64_t> evicted_in_use_;
  std::uint64_t stuck_ = 0;    ///< dirty pages of each generation
  std::uint64_t largest_ = 0;  ///< the most one command took
  std::uint64_t ages_ = 0;
  std::uint64_t merges_with_pages_ = 0;

 private:
  [[nodiscard]] std::uint64_t first() const { return youngest_ >= 3 ? youngest_ - 3 : 0; }
  std::uint64_t& at(std::uint64_t g) { return pages_[g % 8]; }
  std::uint64_t& hot(std::uint64_t g) { return hot_[g % 8]; }

  std::uint64_t youngest_ = 1;
  std::uint64_t unproven_ = 0;
  std::uint64_t pages_[8] = {};
  std::uint64_t hot_[8] = {};
};

class Engine : public testing::Test {
 protected:
  /// Ticks whenever the engine asks for it; returns the number of ticks.
  unsigned run(ColdCache& cache, milliseconds length) {
    const auto end = now_ + length;
    unsigned ticks = 0;
    while (true) {
      const auto due = cache.tick(balloon_, now_);
      ++ticks;
      if (due > end) {
        now_ = end;
        return ticks;
      }
      EXPECT_GE(due, now_);
      now_ = std::max(due, now_ + milliseconds(1));
    }
  }

  SimulatedKernel kernel_;
  BalloonView balloon_{Bytes::mib(100), Bytes::gib(1), Bytes::mib(10), Bytes::mib(20), true};
  ColdCache::Clock::time_point now_{seconds(100)};
};

TEST_F(Engine, OffTakesNothing) {
  ColdCache cache(kernel_, CacheMode::off);
  kernel_.read(100'000);
  run(cache, seconds(60));
  EXPECT_EQ(kernel_.pages(), 100'000U);
  EXPECT_EQ(cache.stats().state, CacheState::off);
}

TEST_F(Engine, ProactiveTakesWhatIsColdInGrowingBites) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(50 * 256);
  EXPECT_EQ(cache.tick(balloon_, now_), now_ + ColdCache::kPatience);
  run(cache, ColdCache::kPatience + seconds(3));
  EXPECT_EQ(kernel_.pages(), 0U);
  EXPECT_EQ(cache.stats().evicted_pages, 50U * 256);
  EXPECT_LE(kernel_.largest_, CachePace::kLastStep);
}

TEST_F(Engine, ProactiveLeavesWhatIsInUse) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(10'000);
  kernel_.read(20'000, true);
  for (int i = 0; i < 200; ++i) {
    run(cache, milliseconds(100));
    kernel_.use_again();
    ASSERT_GE(kernel_.pages(), 20'000U);
  }
  EXPECT_EQ(kernel_.pages(), 20'000U);
  EXPECT_EQ(kernel_.merges_with_pages_, 0U);
}

TEST_F(Engine, ProactiveStopsWhenWhatItTookIsReadAgain) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(50'000);
  run(cache, ColdCache::kPatience + milliseconds(350));
  const std::uint64_t first_bite = cache.stats().evicted_pages;
  ASSERT_GT(first_bite, 0U);
  kernel_.numbers_.refaulted += first_bite;
  (void)cache.tick(balloon_, now_ += milliseconds(250));
  EXPECT_EQ(cache.stats().state, CacheState::refaulting);
  EXPECT_EQ(cache.stats().brakes, 1U);
  const std::uint64_t left = kernel_.pages();
  (void)cache.tick(balloon_, now_ += milliseconds(500));
  EXPECT_EQ(kernel_.pages(), left);
}

TEST_F(Engine, AGuestThatReleasesMemoryEndsTheCaution) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 100'000;
  kernel_.read(50'000);
  for (int i = 0; i < 4; ++i) {  // harm after harm: pages wait longer and longer
    const std::uint64_t before = cache.stats().evicted_pages;
    while (cache.stats().evicted_pages == before) run(cache, milliseconds(200));
    kernel_.numbers_.refaulted += cache.stats().evicted_pages - before;
    run(cache, milliseconds(1500));
  }
  ASSERT_GE(cache.stats().brakes, 3U);
  kernel_.numbers_.anonymous = 50'000;
  run(cache, seconds(12));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AReleaseOfMemoryShortensTheWaitForWhatIsColdNow) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 100'000;
  kernel_.read(20 * 256, true);
  for (int i = 0; i < 30; ++i) {  // in use until now
    run(cache, milliseconds(100));
    kernel_.use_again();
  }
  ASSERT_EQ(kernel_.pages(), 20U * 256);
  kernel_.numbers_.anonymous = 50'000;
  // A short turn and a few bites; without the release nothing goes before 5 s.
  run(cache, seconds(3));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AReleaseShortensTheWaitForWhatLiesInTheNextGenerationToo) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 100'000;
  kernel_.read(20 * 256);
  run(cache, milliseconds(500));
  kernel_.read(20 * 256);  // after the oldest generation was closed
  kernel_.numbers_.anonymous = 50'000;
  run(cache, 2 * ColdCache::kFreshPatience + milliseconds(900));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AReleaseLetsNoMoreThanTwiceAsMuchGoEarly) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 100'000;
  (void)cache.tick(balloon_, now_);
  kernel_.read(50'000);
  run(cache, milliseconds(500));
  kernel_.numbers_.anonymous -= 2 * ColdCache::kReleased;
  run(cache, ColdCache::kPatience - milliseconds(100));
  const std::uint64_t early = cache.stats().evicted_pages;
  EXPECT_GE(early, 2 * ColdCache::kFreshShare * ColdCache::kReleased);
  EXPECT_LE(early, 2 * ColdCache::kFreshShare * ColdCache::kReleased + CachePace::kLastStep);
  run(cache, seconds(12));
  EXPECT_EQ(kernel_.pages(), 0U) << "the rest goes as cold cache always does";
}

TEST_F(Engine, ASecondHarmEndsTheShortWait) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 200'000;
  (void)cache.tick(balloon_, now_);
  kernel_.read(50'000);
  run(cache, milliseconds(500));
  kernel_.numbers_.anonymous = 100'000;
  std::uint64_t seen = 0;
  for (int i = 0; i < 30; ++i) {  // all that goes is in use and comes back
    run(cache, milliseconds(100));
    kernel_.numbers_.refaulted += cache.stats().evicted_pages - seen;
    seen = cache.stats().evicted_pages;
  }
  EXPECT_EQ(cache.stats().brakes, 2U);
  EXPECT_LE(seen, 4 * CachePace::kFirstStep * CachePace::kGrowth);
}

TEST_F(Engine, AfterAReleaseWhatWasNotInUseGoesWithinASecond) {
  kernel_.evicted_in_use_ = 0;
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 200'000;
  (void)cache.tick(balloon_, now_);
  kernel_.read(100 * 256);
  run(cache, milliseconds(500));
  kernel_.numbers_.anonymous = 100'000;
  (void)cache.tick(balloon_, now_);
  run(cache, ColdCache::kFreshPatience + milliseconds(500));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, ABiteOfPagesInUseIsTheOnlyOneUntilItIsKnownWhetherTheyAreMissed) {
  kernel_.evicted_in_use_ = 0;
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 200'000;
  (void)cache.tick(balloon_, now_);
  kernel_.read(50'000);
  run(cache, milliseconds(500));
  kernel_.numbers_.anonymous = 100'000;
  kernel_.in_use_ = 1'000'000;
  (void)cache.tick(balloon_, now_);
  run(cache, ColdCache::kFreshPatience + ColdCache::kFreshPatience - milliseconds(20));
  EXPECT_EQ(cache.stats().evicted_pages, CachePace::kFirstStep);
  // They are missed: the kernel spares the others from now on, which is why it goes on.
  kernel_.numbers_.refaulted += CachePace::kFirstStep;
  kernel_.in_use_ = 0;
  run(cache, CachePace::kShortBrake + seconds(1));
  EXPECT_EQ(cache.stats().brakes, 1U);
  EXPECT_GT(cache.stats().evicted_pages, 20'000U);
}

TEST_F(Engine, ABiteOfPagesThatNobodyMissesHoldsNothingUpForLong) {
  kernel_.evicted_in_use_ = 0;
  kernel_.in_use_ = 1'000'000;  // a file that was copied twice, and never again
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(15 * 256);
  run(cache, ColdCache::kPatience + 5 * ColdCache::kShowsWithin);
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AfterOneSuchBiteThatNobodyMissedTheOthersDoNotWait) {
  kernel_.evicted_in_use_ = 0;
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.numbers_.anonymous = 200'000;
  (void)cache.tick(balloon_, now_);
  kernel_.read(100 * 256);
  run(cache, milliseconds(500));
  kernel_.numbers_.anonymous = 100'000;  // a program ends, which used all of it until now
  kernel_.in_use_ = 1'000'000;
  (void)cache.tick(balloon_, now_);
  run(cache, 2 * ColdCache::kFreshPatience + milliseconds(600));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, ProgramsThatComeAndGoDoNotKeepColdCacheForEver) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(20 * 256);
  for (int i = 0; i < 120; ++i) {  // a compiler every 200 ms
    kernel_.numbers_.anonymous = i % 2 == 0 ? 100'000 : 50'000;
    run(cache, milliseconds(200));
  }
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, ProactiveStopsWhenTasksStall) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(50'000);
  run(cache, ColdCache::kPatience + milliseconds(550));
  kernel_.numbers_.stalled = *kernel_.numbers_.stalled + milliseconds(100);
  (void)cache.tick(balloon_, now_ += milliseconds(250));
  EXPECT_EQ(cache.stats().state, CacheState::stalling);
}

TEST_F(Engine, AtTargetOrWithoutAHostNothingIsTakenAndNoTickIsAskedFor) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(50'000);
  balloon_.resident = balloon_.target;
  EXPECT_EQ(cache.tick(balloon_, now_), ColdCache::Clock::time_point::max());
  balloon_.resident = Bytes(0);
  balloon_.connected = false;
  EXPECT_EQ(cache.tick(balloon_, now_), ColdCache::Clock::time_point::max());
  EXPECT_EQ(kernel_.pages(), 50'000U);
}

TEST_F(Engine, AtRestItWakesLessThanOnceASecondAndComesBackWhenStirred) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.stuck_ = 1'000'000;  // everything dirty: nothing can go
  kernel_.read(1000);
  run(cache, seconds(120));
  EXPECT_LE(run(cache, seconds(100)), 50U);
  kernel_.stuck_ = 0;
  cache.stir();
  run(cache, seconds(10));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AGuestThatIsStirredAgainAndAgainDoesNotRest) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(1000, true);
  const std::uint64_t ages = kernel_.ages_;
  for (int i = 0; i < 60; ++i) {
    cache.stir();
    run(cache, seconds(1));
    kernel_.use_again();
  }
  // A turn ages once; at kPatience and a work tick each, a minute has room for 11.
  EXPECT_GE(kernel_.ages_ - ages, 9U);
  EXPECT_GE(kernel_.pages(), 1000U);
}

TEST_F(Engine, UnmappedFirstWaitsUntilFreeMemoryIsShort) {
  ColdCache cache(kernel_, CacheMode::unmapped_first);
  kernel_.read(50'000);
  kernel_.balloon_pages_ = balloon_.resident.whole_pages();
  balloon_.free = Bytes::mib(500);
  run(cache, seconds(10));
  EXPECT_EQ(kernel_.pages(), 50'000U);
  EXPECT_EQ(cache.stats().state, CacheState::memory_at_hand);
  balloon_.free = balloon_.reserve;
  run(cache, seconds(10));
  EXPECT_LE(kernel_.pages(), ColdCache::kLeastUnmapped + 64);
}

TEST_F(Engine, UnmappedFirstLeavesMappedPagesAndDoesNotCountTheBalloon) {
  ColdCache cache(kernel_, CacheMode::unmapped_first);
  kernel_.read(50'000);
  kernel_.numbers_.mapped = 48'000;
  kernel_.balloon_pages_ = balloon_.resident.whole_pages();
  run(cache, seconds(20));
  EXPECT_EQ(kernel_.pages(), 50'000U);
}

TEST_F(Engine, AnEpochTakesWhatWasThereWhenTheLastOneBeganAndNotWhatCameSince) {
  ColdCache cache(kernel_, CacheMode::epoch);
  cache.set_epoch(7);
  kernel_.read(30'000);
  run(cache, seconds(60));
  EXPECT_EQ(kernel_.pages(), 30'000U);  // no epoch, no eviction
  kernel_.read(5'000);
  cache.set_epoch(8);
  run(cache, seconds(5));
  EXPECT_EQ(kernel_.pages(), 5'000U);
  EXPECT_EQ(cache.stats().epoch, 8U);
  cache.set_epoch(9);
  run(cache, seconds(5));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, AThousandEpochsASecondAreAFewTurnsAndFewAgeings) {
  ColdCache cache(kernel_, CacheMode::epoch);
  std::uint64_t epoch = 1;
  cache.set_epoch(epoch);
  for (int i = 0; i < 5000; ++i) {
    cache.set_epoch(++epoch);
    kernel_.read(10);
    (void)cache.tick(balloon_, now_ += milliseconds(1));
  }
  EXPECT_LE(cache.stats().epoch_turns, 6U);
  EXPECT_LE(kernel_.ages_, 20U);
}

TEST_F(Engine, EpochsWithoutGenerationsGoInSmallSteps) {
  kernel_.features_.generations_missing = "no debugfs";
  ColdCache cache(kernel_, CacheMode::epoch);
  cache.set_epoch(1);
  kernel_.read(80'000);
  run(cache, seconds(5));
  cache.set_epoch(2);
  run(cache, seconds(10));
  EXPECT_EQ(kernel_.pages(), 40'000U);  // half: the kernel's inactive list is about that
  EXPECT_LE(kernel_.largest_, ColdCache::kEpochStep);
  EXPECT_EQ(cache.stats().method, ReclaimMethod::steps);
  EXPECT_EQ(cache.stats().note, "epoch: in small steps of memory.reclaim, no debugfs");
}

TEST_F(Engine, ProactiveWithoutGenerationsIsSlow) {
  kernel_.features_.generations_missing = "no debugfs";
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(64'000);
  run(cache, seconds(10));
  EXPECT_GT(cache.stats().evicted_pages, 5'000U);
  EXPECT_LT(cache.stats().evicted_pages, 12'000U);
}

TEST_F(Engine, APurgeTakesTheAmountAtOnceInAnyMode) {
  ColdCache cache(kernel_, CacheMode::off);
  kernel_.read(30'000);
  EXPECT_EQ(cache.purge(Bytes::pages(10'000)), Bytes::pages(10'000));
  EXPECT_EQ(kernel_.pages(), 20'000U);
  EXPECT_EQ(cache.stats().purged_pages, 10'000U);
}

TEST_F(Engine, APurgeOfMoreThanThereIsTakesWhatThereIs) {
  ColdCache cache(kernel_, CacheMode::proactive);
  kernel_.read(30'000);
  EXPECT_EQ(cache.purge(Bytes::gib(4000)), Bytes::pages(30'000));
  EXPECT_EQ(kernel_.pages(), 0U);
}

TEST_F(Engine, APurgeWithoutGenerationsGoesByTheKernelsChoice) {
  kernel_.features_.generations_missing = "no debugfs";
  ColdCache cache(kernel_, CacheMode::off);
  kernel_.read(30'000);
  EXPECT_EQ(cache.purge(Bytes::pages(10'000)), Bytes::pages(10'000));
}

TEST_F(Engine, APurgeThatTheKernelCannotServeTakesNothingAndReturns) {
  kernel_.features_.generations_missing = "no debugfs";
  kernel_.features_.steps_missing = "cgroup v1";
  ColdCache cache(kernel_, CacheMode::off);
  kernel_.read(30'000);
  EXPECT_EQ(cache.purge(Bytes::gib(1)), Bytes(0));
}

TEST_F(Engine, AnotherModeStartsAnew) {
  ColdCache cache(kernel_, CacheMode::off);
  kernel_.read(30'000);
  run(cache, seconds(5));
  cache.set_mode(CacheMode::proactive);
  run(cache, seconds(8));
  EXPECT_EQ(kernel_.pages(), 0U);
  cache.set_mode(CacheMode::off);
  kernel_.read(30'000);
  run(cache, seconds(8));
  EXPECT_EQ(kernel_.pages(), 30'000U);
}

TEST(ColdCacheThread, CarriesOutOrdersAndTellsWhenMemoryWasFreed) {
  auto owned = std::make_unique<SimulatedKernel>();
  owned->read(30'000);
  std::mutex mutex;
  std::condition_variable progress;
  bool freed = false;
  ColdCacheThread thread(std::move(owned), CacheMode::off, [&] {
    const std::lock_guard lock(mutex);
    freed = true;
    progress.notify_one();
  });
  thread.purge(Bytes::pages(1000));
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(progress.wait_for(lock, seconds(30), [&] { return freed; }));
  }
  thread.set_mode(CacheMode::epoch);
  EXPECT_EQ(thread.stats().mode, CacheMode::epoch);
  thread.set_epoch(12);
  EXPECT_EQ(thread.stats().epoch, 12U);
}

}  // namespace
}  // namespace fileballoon::guest
