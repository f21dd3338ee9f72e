// The pure parts of uffd/: refault windows, the latency histogram, seccomp filters.
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>

#include <array>
#include <cstddef>
#include <functional>
#include <random>

#include "uffd/latency_histogram.h"
#include "uffd/pager/clock_hands.h"
#include "uffd/refault_window.h"
#include "uffd/seccomp_filter.h"

namespace fileballoon {
namespace {

using namespace std::chrono_literals;

// Runs a stream over `pages` absent pages, step by step as the engine does; returns the faults.
int faults_of_stream(RefaultWindow& window, std::uint64_t pages, bool upwards) {
  int faults = 0;
  if (upwards) {
    for (std::uint64_t at = 0; at < pages;) {
      const auto answer = window.next(0, at);
      const auto count =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(answer.count, pages - at));
      EXPECT_EQ(answer.first, at);
      window.filled(at, count);
      at += count;
      ++faults;
    }
  } else {
    for (std::uint64_t end = pages; end > 0;) {
      const auto answer = window.next(0, end - 1);
      EXPECT_EQ(answer.first + answer.count, end);
      window.filled(answer.first, answer.count);
      end = answer.first;
      ++faults;
    }
  }
  return faults;
}

TEST(RefaultWindow, GrowsOnSequentialFaultsInBothDirections) {
  RefaultWindow up;
  EXPECT_LE(faults_of_stream(up, 16384, true), 72) << "64 windows of 256, and the way there";
  RefaultWindow down;
  EXPECT_LE(faults_of_stream(down, 16384, false), 72);
}

TEST(RefaultWindow, RandomFaultsGetOnePage) {
  RefaultWindow window;
  std::mt19937_64 random(7);
  std::uint64_t pages = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t page = random() % (1ULL << 30);
    const auto answer = window.next(0, page);
    pages += answer.count;
    window.filled(answer.first, answer.count);
  }
  EXPECT_LT(pages, 10'100U);
}

TEST(RefaultWindow, StreamsDoNotDisturbEachOther) {
  RefaultWindow window;
  std::array<std::uint64_t, 4> at = {0, 1 << 20, 2 << 20, 3 << 20};
  int faults = 0;
  for (int round = 0; round < 20; ++round) {
    for (std::uint32_t stream = 0; stream < at.size(); ++stream) {
      const auto answer = window.next(stream % 2, at[stream]);
      window.filled(answer.first, answer.count);
      at[stream] = answer.first + answer.count;
      ++faults;
    }
  }
  for (std::uint32_t stream = 0; stream < at.size(); ++stream) {
    EXPECT_GT(at[stream] - (static_cast<std::uint64_t>(stream) << 20), 3000U);
  }
}

TEST(RefaultWindow, AWindowCutShortStartsSmallAgain) {
  RefaultWindow window;
  std::uint64_t at = 0;
  for (int i = 0; i < 10; ++i) {
    const auto answer = window.next(0, at);
    window.filled(answer.first, answer.count);
    at = answer.first + answer.count;
  }
  (void)window.next(0, at);
  window.filled(at, 1);  // only one page there was absent
  EXPECT_LE(window.next(0, at + 1).count, 8U);
}

// Lost otherwise: a sequential refill that starts with small answers again every 2 MiB, which no
// answer may reach over. Cut short at the first edge, the window is back at full size soon, and
// from then on two answers fill a piece exactly.
TEST(RefaultWindow, TheEdgesOfPiecesCostAStreamAFewFaultsOnceAndNotEachTime) {
  constexpr std::uint64_t kPiece = 512;
  constexpr std::uint64_t kPages = 32 * kPiece;
  RefaultWindow up;
  int faults = 0;
  for (std::uint64_t at = 0; at < kPages; ++faults) {
    const auto answer = up.next(0, at);
    const std::uint64_t end =
        std::min(answer.first + answer.count, (at / kPiece + 1) * kPiece);  // as the engine does
    up.filled(at, static_cast<std::uint32_t>(end - at));
    at = end;
  }
  EXPECT_LE(faults, 2 * 32 + 10);
  RefaultWindow down;
  faults = 0;
  for (std::uint64_t end = kPages; end > 0; ++faults) {
    const auto answer = down.next(0, end - 1);
    const std::uint64_t first = std::max(answer.first, (end - 1) / kPiece * kPiece);
    down.filled(first, static_cast<std::uint32_t>(end - first));
    end = first;
  }
  EXPECT_LE(faults, 2 * 32 + 10);
}

TEST(RefaultWindow, CountsWhatWasBroughtInForNothing) {
  RefaultWindow window;
  faults_of_stream(window, 4096, true);
  const auto used = window.counters().used;
  EXPECT_GT(used, 3500U);
  for (std::uint64_t i = 0; i < 16; ++i) {  // as many new streams as are tracked
    (void)window.next(1, i << 20);
    window.filled(i << 20, 1);
  }
  EXPECT_EQ(window.counters().used, used);
  EXPECT_GT(window.counters().unused, 0U) << "the last window's stream ended there";
}

TEST(RefaultWindow, NeverBelowThePageZero) {
  RefaultWindow window;
  (void)window.next(0, 3);
  window.filled(3, 1);
  const auto answer = window.next(0, 2);
  EXPECT_EQ(answer.first, 0U);
  EXPECT_EQ(answer.count, 3U);
}

TEST(LatencyHistogram, QuantilesAreWithinItsResolution) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.quantile(0.5), 0ns);
  for (int i = 1; i <= 10'000; ++i) {
    histogram.add(std::chrono::nanoseconds(i * 100));
  }
  EXPECT_EQ(histogram.count(), 10'000U);
  for (const double q : {0.01, 0.5, 0.9, 0.99, 0.999}) {
    const double exact = q * 1'000'000;
    const auto seen = static_cast<double>(histogram.quantile(q).count());
    EXPECT_GE(seen, exact * 0.99) << q;
    EXPECT_LE(seen, exact * 1.07) << q;
  }
}

TEST(LatencyHistogram, TakesAnything) {
  LatencyHistogram histogram;
  histogram.add(-5ns);
  histogram.add(0ns);
  histogram.add(std::chrono::hours(10));
  EXPECT_EQ(histogram.count(), 3U);
  EXPECT_EQ(histogram.quantile(0), 0ns);
  EXPECT_GT(histogram.quantile(1), std::chrono::minutes(15));
}

// Filters as sandboxes write them.
constexpr std::array<std::uint64_t, 6> kNoArguments = {};

TEST(SeccompFilter, ADenyListForbidsByNumber) {
  const std::array<sock_filter, 4> deny = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  EXPECT_FALSE(allows(run_filter(deny, SYS_userfaultfd, kNoArguments, 0)));
  EXPECT_TRUE(allows(run_filter(deny, SYS_close, kNoArguments, 0)));
}

TEST(SeccompFilter, ArchitectureArgumentsAndArithmeticAreSeen) {
  const std::array<sock_filter, 9> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf),
      BPF_STMT(BPF_MISC | BPF_TAX, 0),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 7, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_LOG),
  }};
  std::array<std::uint64_t, 6> arguments = {0x18};
  EXPECT_EQ(run_filter(filter, 1, arguments, 0), SECCOMP_RET_ERRNO | 1U);
  arguments[0] = 0x13;
  EXPECT_TRUE(allows(run_filter(filter, 1, arguments, 0)));
}

// The kernel tells a filter where the call returns to, which is behind the two-byte instruction.
TEST(SeccompFilter, TheInstructionPointerIsTheOneThatTheKernelShows) {
  constexpr std::uint64_t kInstruction = 0x7fff12345678;
  const std::array<sock_filter, 4> only_there = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, instruction_pointer)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x1234567a, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  }};
  EXPECT_TRUE(allows(run_filter(only_there, 1, kNoArguments, kInstruction)));
  EXPECT_FALSE(allows(run_filter(only_there, 1, kNoArguments, kInstruction + 2)));
}

TEST(SeccompFilter, ABrokenProgramAllowsNothing) {
  EXPECT_FALSE(allows(run_filter({}, 1, kNoArguments, 0)));
  const std::array<sock_filter, 1> outside = {{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4000)}};
  EXPECT_FALSE(allows(run_filter(outside, 1, kNoArguments, 0)));
  const std::array<sock_filter, 1> jump = {{BPF_JUMP(BPF_JMP | BPF_JA, 1000, 0, 0)}};
  EXPECT_FALSE(allows(run_filter(jump, 1, kNoArguments, 0)));
}

// A VM of 512 pieces; what is in use is given by piece. Goes round until `wanted` pages have gone.
struct ClockRun {
  std::uint64_t looks = 0;
  std::uint64_t taken = 0;
  std::chrono::milliseconds spent{};
};
ClockRun run_clock(ClockHands& hands, std::uint64_t pieces, std::uint64_t wanted,
                   const std::function<std::uint64_t(std::uint64_t)>& cold_of) {
  ClockRun run;
  ClockHands::Clock::time_point now{std::chrono::seconds(1000)};
  while (run.taken < wanted && run.spent < std::chrono::minutes(1)) {
    switch (hands.next(wanted - run.taken, now)) {
      case ClockHands::Move::look:
        hands.looked(run.looks++ % pieces, now);
        break;
      case ClockHands::Move::take: {
        const auto looked = hands.take(now);
        EXPECT_GE(now - looked.at, ClockHands::kLeastChance) << "no chance to be used again";
        const std::uint64_t cold = cold_of(looked.piece);
        hands.took(cold);
        run.taken += cold;
        break;
      }
      case ClockHands::Move::wait:
        hands.starved(now);
        now += 5ms;
        run.spent += 5ms;
        break;
    }
  }
  return run;
}

TEST(ClockHands, ALittleRoomCostsAFewLooksHoweverLargeTheVm) {
  ClockHands hands(512, 512);
  const ClockRun run = run_clock(hands, 512, 2048, [](std::uint64_t) { return 400; });
  EXPECT_LE(run.looks, 24U);
  EXPECT_LE(run.spent, 400ms) << "less than faults wait";
}

TEST(ClockHands, WhereLittleIsColdItLooksFartherAhead) {
  ClockHands hands(512, 512);
  // A sixteenth of the pieces has anything.
  const ClockRun run =
      run_clock(hands, 512, 4096, [](std::uint64_t piece) { return piece % 16 == 0 ? 512 : 0; });
  EXPECT_GE(run.taken, 4096U);
  EXPECT_LE(run.looks, 512U) << "found within a round";
  EXPECT_LE(run.spent, 3s);
}

TEST(ClockHands, EverythingInUseIsKnownAfterTwoRounds) {
  ClockHands hands(64, 512);
  bool known = false;
  std::uint64_t takes = 0;
  (void)run_clock(hands, 64, 1, [&](std::uint64_t) {
    ++takes;
    known = known || hands.all_in_use();
    return known ? 1 : 0;
  });
  EXPECT_TRUE(known);
  EXPECT_GE(takes, 128U);
  EXPECT_LE(takes, 130U);
}

TEST(ClockHands, PagesThatComeBackAtOnceGetMoreOfAChanceUpToABound) {
  ClockHands hands(64, 512);
  EXPECT_EQ(hands.chance(), ClockHands::kLeastChance);
  hands.came_back(300, 1000);
  EXPECT_GT(hands.chance(), ClockHands::kLeastChance);
  for (int i = 0; i < 10; ++i) {
    hands.came_back(1000, 1000);
  }
  EXPECT_EQ(hands.chance(), ClockHands::kMostChance);
  for (int i = 0; i < 10; ++i) {
    hands.came_back(0, 1000);
  }
  EXPECT_EQ(hands.chance(), ClockHands::kLeastChance);
}

TEST(ClockHands, WhatWasNotWantedOfAPieceIsThereNextTime) {
  ClockHands hands(64, 512);
  const ClockHands::Clock::time_point start{std::chrono::seconds(1000)};
  hands.looked(7, start);
  const auto later = start + ClockHands::kLeastChance;
  ASSERT_EQ(hands.next(100, later), ClockHands::Move::take);
  hands.put_back(hands.take(later));
  EXPECT_EQ(hands.next(100, later), ClockHands::Move::take);
  EXPECT_EQ(hands.take(later).piece, 7U);
}

}  // namespace
}  // namespace fileballoon
