// What a user would lose if these failed: guest data. Threads write to pages at the very moment
// these are discarded; every write must still be there.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include "tests/eventually.h"
#include "tests/integration/uffd_own_memory.h"

namespace fileballoon {
namespace {

using testing::MemoryKind;
using testing::OwnMemory;

struct StressResult {
  std::uint64_t discarded = 0;
  std::uint64_t freed = 0;
  std::uint64_t writes = 0;
  std::uint64_t lost = 0;
};

// Writers own one 8-byte slot each in every page. A writer puts a value into its slot, waits a
// moment, checks that it is still there, and sets the slot back to zero, so that the page can be
// discarded again. A discard that comes between a write and its check must leave the page alone.
// Ends when both sides have done `wanted`, and, with `until_lost`, not before a loss was seen.
StressResult stress(OwnMemory& memory, Discarder& discarder, std::uint64_t wanted,
                    bool until_lost = false) {
  constexpr int kWriters = 3;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> lost{0};
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      std::mt19937_64 random(static_cast<unsigned>(w) + 1);
      std::uint64_t value = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        // A run of pages, so that writes meet discards often.
        const std::uint64_t first = random() % (memory.pages() - 8);
        ++value;
        const auto slot = [&](std::uint64_t i) {
          return std::atomic_ref(
              reinterpret_cast<std::uint64_t*>(memory.page(first + i))[64 * w + 1]);
        };
        for (std::uint64_t i = 0; i < 8; ++i) {
          slot(i).store(value, std::memory_order_relaxed);
        }
        std::this_thread::yield();
        for (std::uint64_t i = 0; i < 8; ++i) {
          if (slot(i).load(std::memory_order_relaxed) != value) {
            lost.fetch_add(1, std::memory_order_relaxed);
          }
          slot(i).store(0, std::memory_order_relaxed);
        }
        writes.fetch_add(8, std::memory_order_relaxed);
      }
    });
  }
  StressResult result;
  std::mt19937_64 random(99);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(90);
  // The writers must have had their share, too.
  while ((result.freed < wanted || writes < wanted || (until_lost && lost == 0)) &&
         std::chrono::steady_clock::now() < deadline) {
    const std::uint64_t count = 1 + random() % 64;
    const std::uint64_t first = random() % (memory.pages() - count);
    const DiscardOutcome outcome = discarder.discard(0, memory.range(first, count));
    EXPECT_EQ(outcome.discarded + outcome.not_zero + outcome.failed, count);
    result.discarded += outcome.discarded;
    result.freed += outcome.freed;
    // Bring some back, so that there is always something to free.
    for (std::uint64_t i = 0; i < count; ++i) {
      std::atomic_ref(reinterpret_cast<std::uint64_t*>(memory.page(first + i))[0])
          .store(0, std::memory_order_relaxed);
    }
  }
  stop = true;
  for (auto& writer : writers) {
    writer.join();
  }
  result.writes = writes;
  result.lost = lost;
  return result;
}

struct StressCase {
  const char* name;
  MemoryKind kind;
  RefaultMode mode;
};

class DiscardStress : public ::testing::TestWithParam<StressCase> {};

TEST_P(DiscardStress, EveryWriteSurvivesOneHundredThousandDiscards) {
  OwnMemory::Options options;
  options.kind = GetParam().kind;
  options.size = Bytes::mib(4);
  options.watch.mode = GetParam().mode;
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram());
  const StressResult result = stress(memory, discarder, 100'000);
  EXPECT_GE(result.freed, 100'000U);
  EXPECT_GE(result.writes, 100'000U);
  EXPECT_EQ(result.lost, 0U) << "of " << result.writes << " writes";
  // How many writers were caught in the act is luck: most are woken by the disarming before a
  // reader sees their message. That the test can see a loss at all is shown by the control below.
  RecordProperty("write_protect_faults", std::to_string(engine.stats().write_protect_faults));
  RecordProperty("discards", std::to_string(result.freed));
  RecordProperty("writes", std::to_string(result.writes));
}

INSTANTIATE_TEST_SUITE_P(
    All, DiscardStress,
    ::testing::Values(StressCase{"MemfdEngine", MemoryKind::memfd, RefaultMode::engine},
                      StressCase{"MemfdKernel", MemoryKind::memfd, RefaultMode::kernel},
                      StressCase{"AnonymousEngine", MemoryKind::anonymous, RefaultMode::engine},
                      StressCase{"AnonymousKernel", MemoryKind::anonymous, RefaultMode::kernel}),
    [](const auto& info) { return info.param.name; });

// The control: the same test sees losses when the arming is taken out, so it can see them.
TEST(DiscardStressControl, WithoutArmingWritesAreLost) {
  OwnMemory::Options options;
  options.size = Bytes::mib(4);
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram(), {.arm = false});
  const StressResult result = stress(memory, discarder, 100'000, true);
  EXPECT_GT(result.lost, 0U) << "of " << result.writes << " writes, " << result.freed
                             << " discards";
  RecordProperty("lost", std::to_string(result.lost));
}

TEST(GuardedDiscard, FreesZeroPagesAndLeavesDataAlone) {
  for (const MemoryKind kind : {MemoryKind::memfd, MemoryKind::anonymous}) {
    OwnMemory::Options options;
    options.kind = kind;
    options.size = Bytes::mib(8);
    OwnMemory memory(options);
    FaultEngine engine(memory.ram(), {});
    GuardedDiscarder discarder(memory.ram());
    memory.page(7)[123] = std::byte{1};
    memory.page(600)[4095] = std::byte{2};
    const DiscardOutcome outcome = discarder.discard(0, memory.all());
    EXPECT_EQ(outcome, (DiscardOutcome{2046, 2, 0, 2046}));
    EXPECT_EQ(memory.ram().frames(0).count(FrameState::absent), 2046U);
    EXPECT_EQ(memory.page(7)[123], std::byte{1});
    EXPECT_EQ(memory.page(600)[4095], std::byte{2});
    // Again: nothing left to free, and nothing is counted as freed.
    const DiscardOutcome again = discarder.discard(0, memory.all());
    EXPECT_EQ(again, (DiscardOutcome{2046, 2, 0, 0}));
  }
}

// A huge page that something holds a reference to cannot be split, so a part of it cannot be freed;
// the kernel says "done" all the same and clears the part.
TEST(GuardedDiscard, APartOfAHugePageThatCannotBeSplitIsNotCounted) {
  OwnMemory::Options options;
  options.size = Bytes::mib(4);
  options.huge = true;
  OwnMemory memory(options);
  if (!memory.huge()) {
    GTEST_SKIP() << "this kernel makes no huge pages of shared memory";
  }
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram());
  memory.page(3)[5] = std::byte{7};
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  iovec held{memory.page(100), kPageSize};
  ASSERT_EQ(::vmsplice(ends[1], &held, 1, 0), static_cast<ssize_t>(kPageSize));
  const DiscardOutcome outcome = discarder.discard(0, memory.range(0, 512));
  EXPECT_EQ(outcome.not_zero, 1U);
  EXPECT_EQ(outcome.discarded + outcome.failed, 511U);
  EXPECT_EQ(outcome.discarded, outcome.freed);
  struct stat status {};
  ASSERT_EQ(::fstat(memory.fd(), &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_blocks) * 512,
            Bytes::mib(4).count() - outcome.freed * kPageSize);
  EXPECT_EQ(memory.page(3)[5], std::byte{7});
  RecordProperty("failed", std::to_string(outcome.failed));
  ::close(ends[0]);
  ::close(ends[1]);
  // Nothing holds it now.
  EXPECT_EQ(discarder.discard(0, memory.range(0, 512)).discarded, 511U);
  EXPECT_EQ(memory.page(3)[5], std::byte{7});
}

// Events are not asked for on an attached VMM, but a VMM's own userfaultfd may bring them.
TEST(EngineEvents, UnmappedOrMovedMemoryIsDiscardedNoMore) {
  for (const bool move : {false, true}) {
    OwnMemory::Options options;
    options.size = Bytes::mib(8);
    options.events = UffdFeature::event_unmap | UffdFeature::event_remap;
    OwnMemory memory(options);
    FaultEngine engine(memory.ram(), {});
    GuardedDiscarder discarder(memory.ram());
    EXPECT_EQ(discarder.discard(0, memory.range(0, 16)).discarded, 16U);
    // Waits until the engine has read the event.
    if (move) {
      void* at = ::mremap(
          memory.page(1024), Bytes::mib(4).count(), Bytes::mib(4).count(),
          MREMAP_MAYMOVE | MREMAP_FIXED,
          ::mmap(nullptr, Bytes::mib(4).count(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      ASSERT_NE(at, MAP_FAILED);
      static_cast<std::byte*>(at)[0] = std::byte{1};  // usable where it is now
      ::munmap(at, Bytes::mib(4).count());
    } else {
      ASSERT_EQ(::munmap(memory.page(1024), Bytes::mib(4).count()), 0);
    }
    EXPECT_TRUE(eventually([&] { return memory.ram().lost(0); }));
    EXPECT_EQ(discarder.discard(0, memory.range(16, 16)).failed, 16U);
    EXPECT_EQ(discarder.refused_pieces(), 1U);
    memory.page(3)[0] = std::byte{1};  // what is still there is served
    EXPECT_EQ(memory.page(3)[0], std::byte{1});
  }
}

TEST(EngineEvents, AForkOfTheVmmLeavesNothingBehindAndHurtsNeither) {
  OwnMemory::Options options;
  options.size = Bytes::mib(2);
  options.events = UffdFeature::event_fork;
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram());
  ASSERT_EQ(discarder.discard(0, memory.all()).discarded, 512U);
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const auto before = open_files();
  const pid_t child = ::fork();
  if (child == 0) {
    // Its userfaultfd was closed by the engine, so its kernel answers.
    std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory.page(5))).store(5);
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(open_files(), before) << "the child's userfaultfd is kept";
  EXPECT_EQ(memory.page(5)[0], std::byte{5});
  EXPECT_EQ(memory.page(6)[0], std::byte{0});
}

TEST(EngineEvents, RemovedMemoryComesBackAsZeros) {
  OwnMemory::Options options;
  options.size = Bytes::mib(2);
  options.events = UffdFeatures(UffdFeature::event_remove);
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  memory.page(9)[0] = std::byte{1};
  ASSERT_EQ(::madvise(memory.page(8), 4 * kPageSize, MADV_REMOVE), 0);
  EXPECT_EQ(memory.page(9)[0], std::byte{0});
  EXPECT_EQ(engine.stats().remove_events, 1U);
  // The engine's thread counts after a wake-up.
  EXPECT_TRUE(eventually([&] { return engine.deflated_pages() > 0; }));
  EXPECT_EQ(engine.deflated_pages(), 1U);
}

// A window is filled in pieces while its first waiter goes on. Lost otherwise: pages between
// pieces, the other direction, and what is left of a window behind a page that is there.
TEST(EngineWindows, EveryPageComesBackOnceInEitherDirection) {
  for (const MemoryKind kind : {MemoryKind::memfd, MemoryKind::anonymous}) {
    for (const bool down : {false, true}) {
      OwnMemory::Options options;
      options.kind = kind;
      options.size = Bytes::mib(8);
      OwnMemory memory(options);
      FaultEngine engine(memory.ram(), {});
      GuardedDiscarder discarder(memory.ram());
      memory.page(1300)[7] = std::byte{3};
      ASSERT_EQ(discarder.discard(0, memory.all()).discarded, memory.pages() - 1);
      std::uint64_t nonzero = 0;
      for (std::uint64_t i = 0; i < memory.pages(); ++i) {
        std::byte* page = memory.page(down ? memory.pages() - 1 - i : i);
        nonzero += page[7] != std::byte{0} ? 1 : 0;
        page[0] = std::byte{1};
      }
      EXPECT_EQ(nonzero, 1U);
      EXPECT_TRUE(eventually([&] { return engine.refaulted_pages() >= memory.pages() - 1; }));
      EXPECT_EQ(engine.refaulted_pages(), memory.pages() - 1);
      EXPECT_EQ(memory.ram().frames(0).count(FrameState::absent), 0U);
      EXPECT_EQ(engine.stats().foreign_faults, 0U);
      for (std::uint64_t i = 0; i < memory.pages(); ++i) {
        ASSERT_EQ(memory.page(i)[0], std::byte{1}) << "page " << i << " was filled twice";
      }
    }
  }
}

TEST(GuardedDiscard, ClipsWhatLiesOutsideTheObject) {
  OwnMemory::Options options;
  options.size = Bytes::mib(2);
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram());
  EXPECT_EQ(discarder.discard(0, memory.range(511, 10)), (DiscardOutcome{1, 0, 9, 1}));
  EXPECT_EQ(discarder.discard(0, memory.range(5000, 10)), (DiscardOutcome{0, 0, 10, 0}));
  EXPECT_EQ(discarder.discard(3, memory.range(0, 10)), (DiscardOutcome{0, 0, 10, 0}));
}

TEST(GuardedDiscard, LazilyFreedPagesKeepWhatIsWrittenLater) {
  OwnMemory::Options options;
  options.kind = MemoryKind::anonymous;
  options.size = Bytes::mib(4);
  options.lazy = true;
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder discarder(memory.ram());
  EXPECT_EQ(discarder.discard(0, memory.all()).discarded, memory.pages());
  EXPECT_EQ(memory.ram().frames(0).count(FrameState::absent), memory.pages());
  memory.page(5)[0] = std::byte{9};
  EXPECT_EQ(memory.ram().frames(0).state(5), FrameState::backed)
      << "the write must be noticed, or the page would never be discarded again";
  // The host takes what is lazily free; the written page must stay.
  ASSERT_EQ(::madvise(memory.base(), options.size.count(), MADV_PAGEOUT), 0);
  EXPECT_EQ(memory.page(5)[0], std::byte{9});
  EXPECT_EQ(memory.page(6)[0], std::byte{0});
  memory.page(5)[0] = std::byte{0};
  const DiscardOutcome again = discarder.discard(0, memory.all());
  EXPECT_EQ(again.not_zero, 0U);
}

TEST(PunchDiscard, CountsOnlyRealHoles) {
  UniqueFd fd(::memfd_create("ram", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(fd.get(), 4 << 20), 0);
  ASSERT_EQ(::fallocate(fd.get(), 0, 0, 4 << 20), 0);
  std::vector<Backing> backings(1);
  backings[0].fd = std::move(fd);
  backings[0].size = Bytes::mib(4);
  const int raw = backings[0].fd.get();
  GuestRam ram = GuestRam::adopt(inspect_process(::getpid()).value(), std::move(backings));
  PunchDiscarder discarder(ram);
  const char data = 'x';
  ASSERT_EQ(::pwrite(raw, &data, 1, 100 * 4096), 1);
  EXPECT_EQ(ram.footprint(), Bytes::mib(4));
  const DiscardOutcome outcome = discarder.discard(0, {HostOffset(0), Bytes::mib(4)});
  EXPECT_EQ(outcome.discarded, 1023U);
  EXPECT_EQ(outcome.not_zero, 1U);
  EXPECT_EQ(ram.footprint(), Bytes(4096)) << "allocated but untouched pages must be freed, too";
}

}  // namespace
}  // namespace fileballoon
