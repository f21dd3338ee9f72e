// FrameMap against a plain array, and with several writers at once. A wrong entry costs the host a
// page-in of content it does not have, so neighbours in one word must never disturb each other.
#include "fileballoon/frame_map.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

namespace fileballoon {
namespace {

constexpr FrameState kStates[] = {FrameState::backed, FrameState::absent, FrameState::paged,
                                  FrameState::guarded};

TEST(FrameMap, StartsBacked) {
  const FrameMap map(100);
  EXPECT_EQ(map.count(FrameState::backed), 100U);
  EXPECT_EQ(map.count(FrameState::absent), 0U);
}

TEST(FrameMap, TakesTwoBitsAPage) {
  EXPECT_EQ(FrameMap(262144).memory(), Bytes(65536));
  EXPECT_EQ(FrameMap(1).memory(), Bytes(8));
  EXPECT_EQ(FrameMap(33).memory(), Bytes(16));
}

TEST(FrameMap, AnEmptyMapIsUsable) {
  FrameMap map(0);
  map.set(0, 10, FrameState::absent);
  EXPECT_EQ(map.count(FrameState::backed), 0U);
  EXPECT_EQ(map.run(0, 10, FrameState::backed), 0U);
}

TEST(FrameMap, WritesAreClippedToTheMap) {
  FrameMap map(40);
  map.set(38, 1000, FrameState::absent);
  map.set(40, 1, FrameState::absent);
  map.set(~0ULL, ~0ULL, FrameState::absent);
  map.set(39, ~0ULL, FrameState::paged);
  EXPECT_EQ(map.count(FrameState::absent), 1U);
  EXPECT_EQ(map.state(39), FrameState::paged);
}

TEST(FrameMap, ChangeHappensOnlyFromTheExpectedState) {
  FrameMap map(64);
  EXPECT_FALSE(map.change(31, FrameState::absent, FrameState::paged));
  EXPECT_EQ(map.state(31), FrameState::backed);
  EXPECT_TRUE(map.change(31, FrameState::backed, FrameState::guarded));
  EXPECT_TRUE(map.change(31, FrameState::guarded, FrameState::absent));
  EXPECT_EQ(map.state(31), FrameState::absent);
  EXPECT_EQ(map.state(30), FrameState::backed);
  EXPECT_EQ(map.state(32), FrameState::backed);
}

TEST(FrameMap, BehavesLikeAnArray) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::uint64_t pages = 1 + random() % 300;
    FrameMap map(pages);
    std::vector<FrameState> model(pages, FrameState::backed);
    for (int step = 0; step < 400; ++step) {
      const std::uint64_t first = random() % (pages + 3);
      const std::uint64_t count = random() % 80;
      const FrameState state = kStates[random() % 4];
      switch (random() % 3) {
        case 0:
          map.set(first, count, state);
          for (std::uint64_t p = first; p < std::min(pages, first + count); ++p) {
            model[p] = state;
          }
          break;
        case 1:
          if (first < pages) {
            const FrameState expected = kStates[random() % 4];
            ASSERT_EQ(map.change(first, expected, state), model[first] == expected);
            if (model[first] == expected) {
              model[first] = state;
            }
          }
          break;
        default: {
          std::uint64_t run = 0;
          while (run < count && first + run < pages && model[first + run] == state) {
            ++run;
          }
          ASSERT_EQ(map.run(first, count, state), run);
        }
      }
    }
    for (std::uint64_t p = 0; p < pages; ++p) {
      ASSERT_EQ(map.state(p), model[p]) << p;
    }
    for (const FrameState state : kStates) {
      EXPECT_EQ(map.count(state),
                static_cast<std::uint64_t>(std::count(model.begin(), model.end(), state)));
    }
  }
}

TEST(FrameMapThreads, WritersOfNeighbouringPagesDoNotDisturbEachOther) {
  constexpr unsigned kThreads = 4;
  constexpr std::uint64_t kPages = 509;  // words shared by all threads, and a short last one
  constexpr int kRounds = 200;
  FrameMap map(kPages);
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads, 0);
  for (unsigned id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      for (int round = 0; round < kRounds; ++round) {
        const FrameState mine = kStates[(round + id) % 4];
        for (std::uint64_t p = id; p < kPages; p += kThreads) {
          map.set(p, 1, mine);
        }
        for (std::uint64_t p = id; p < kPages; p += kThreads) {
          wrong[id] += map.state(p) == mine ? 0 : 1;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

TEST(FrameMapThreads, OneChangeWins) {
  constexpr unsigned kThreads = 4;
  constexpr std::uint64_t kPages = 2000;
  FrameMap map(kPages);
  std::vector<std::uint64_t> won(kThreads, 0);
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      for (std::uint64_t p = 0; p < kPages; ++p) {
        won[id] += map.change(p, FrameState::backed, FrameState::guarded) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(won[0] + won[1] + won[2] + won[3], kPages) << "each page is guarded by exactly one";
  EXPECT_EQ(map.count(FrameState::guarded), kPages);
}

}  // namespace
}  // namespace fileballoon
