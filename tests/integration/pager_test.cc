// The pager on real memory with a real userfaultfd: threads of this process stand for the guest. A
// page that does not come back exactly as it was written is a guest's memory corrupted.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "tests/eventually.h"
#include "tests/integration/uffd_own_memory.h"
#include "tests/unit/store_pages.h"
#include "uffd/pager/pager_service.h"
#include "uffd/pager/paging_host.h"
#include "uffd/pager/tier_store.h"

// Failures on order, by the linker's --wrap.
namespace {
std::atomic<bool> g_no_memory{false};
}
extern "C" {
void* __real_realloc(void* old, std::size_t size);
ssize_t __real_pwrite(int fd, const void* data, std::size_t size, off_t at);
void* __wrap_realloc(void* old, std::size_t size) {
  return g_no_memory ? nullptr : __real_realloc(old, size);
}
ssize_t __wrap_pwrite(int fd, const void* data, std::size_t size, off_t at) {
  if (g_no_memory) {
    errno = ENOMEM;
    return -1;
  }
  return __real_pwrite(fd, data, size, at);
}
}

namespace fileballoon {
namespace {

using ::testing::HasSubstr;
using testing::OwnMemory;
using testing::OwnMemoryOptions;

/// Memory, a store, a pager on it and an engine that answers its faults.
class PagerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::current_path().string() + "/pager.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override {
    service_.reset();
    writer_.reset();
    engine_.reset();
    pager_.reset();
    memory_.reset();
    std::filesystem::remove_all(directory_);
  }

  static std::unique_ptr<CompressedStore> compressed(Bytes limit = Bytes::mib(64)) {
    return std::make_unique<CompressedStore>(CompressedStoreOptions{limit, Compression::lz4});
  }
  std::unique_ptr<FileStore> file(Bytes limit = Bytes::mib(64)) const {
    return std::make_unique<FileStore>(StoreFile::open({directory_, limit, "vm"}).value(), nullptr);
  }

  void start(std::unique_ptr<PageStore> store, Bytes size = Bytes::mib(32),
             Resolver resolver = Resolver::zeropage, Pager::Options paging = {}) {
    OwnMemoryOptions options;
    options.size = size;
    options.shards = shards_;
    memory_ = std::make_unique<OwnMemory>(options);
    pager_ = Pager::create(memory_->ram(), std::move(store), paging).value();
    FaultEngine::Options engine;
    engine.resolver = resolver;
    engine_ = std::make_unique<FaultEngine>(memory_->ram(), engine, pager_.get());
    writer_ = std::make_unique<PageWriter>(*pager_);
  }
  void serve(PagerService::Options options, AccessMethod method = AccessMethod::unmap) {
    auto tracker =
        AccessTracker::create(memory_->ram(), ::getpid(), pager_->all_ages(), method).value();
    service_ = std::make_unique<PagerService>(*pager_, std::move(tracker), nullptr, options);
  }

  void fill(std::uint64_t seed = 1) { fill_pages(0, memory_->pages(), seed); }
  void fill_pages(std::uint64_t first, std::uint64_t end, std::uint64_t seed = 1) {
    for (std::uint64_t page = first; page < end; ++page) {
      testing::fill_compressible(memory_->page(page), seed * 1000003 + page);
    }
  }
  [[nodiscard]] std::vector<std::uint64_t> shuffled_pages(unsigned seed) const {
    std::vector<std::uint64_t> order(memory_->pages());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    return order;
  }
  /// How many pages are not what fill() made them.
  std::uint64_t wrong_pages(std::uint64_t seed = 1) {
    PageBuffer expected(1);
    std::uint64_t wrong = 0;
    for (std::uint64_t page = 0; page < memory_->pages(); ++page) {
      testing::fill_compressible(expected.page(0), seed * 1000003 + page);
      wrong += std::memcmp(memory_->page(page), expected.page(0), kPageSize) == 0 ? 0 : 1;
    }
    return wrong;
  }
  /// Pages out [first, end) and says what became of them.
  PageWriter::Outcome out(std::uint64_t first, std::uint64_t end) {
    PageWriter::Outcome sum;
    while (first < end) {
      std::vector<std::uint64_t> batch(std::min<std::uint64_t>(PageWriter::kBatch, end - first));
      std::iota(batch.begin(), batch.end(), first);
      sum += writer_->write(0, batch);
      first += batch.size();
    }
    sum += writer_->flush();
    return sum;
  }
  void write_beside_page_out();
  Bytes footprint() const {
    struct stat status {};
    EXPECT_EQ(::fstat(memory_->fd(), &status), 0);
    return Bytes(static_cast<std::uint64_t>(status.st_blocks) * 512);
  }
  std::vector<PagerEvent> events() {
    std::vector<PagerEvent> all;
    (void)pager_->events().drain([&](const PagerEvent& event) { all.push_back(event); });
    return all;
  }

  /// A thread that waited for a page runs on an instant before the pager has closed its books.
  bool store_empties() {
    return eventually([&] {
      const PagerStats stats = pager_->stats();
      return stats.paged_pages == 0 && stats.store.pages == 0;
    });
  }

  std::string directory_;
  unsigned shards_ = 1;
  std::unique_ptr<OwnMemory> memory_;
  std::unique_ptr<Pager> pager_;
  std::unique_ptr<FaultEngine> engine_;
  std::unique_ptr<PageWriter> writer_;
  std::unique_ptr<PagerService> service_;
};

TEST_F(PagerTest, MemoryGoesOutToCompressedMemoryAndComesBack) {
  start(compressed());
  fill();
  const PageWriter::Outcome outcome = out(0, memory_->pages());
  EXPECT_EQ(outcome.stored, memory_->pages());
  EXPECT_EQ(footprint().count(), 0U);
  EXPECT_EQ(pager_->stats().paged_pages, memory_->pages());
  EXPECT_EQ(wrong_pages(), 0U);
  EXPECT_TRUE(store_empties()) << "contents were kept after they went back";
  EXPECT_GT(pager_->stats().read_ahead, memory_->pages() / 2)
      << "a sequential reader faulted " << pager_->stats().faults << " times";
}

TEST_F(PagerTest, MemoryGoesOutToAFileAndComesBack) {
  start(file());
  fill();
  EXPECT_EQ(out(0, memory_->pages()).stored, memory_->pages());
  EXPECT_EQ(footprint().count(), 0U);
  EXPECT_EQ(wrong_pages(), 0U);
  EXPECT_TRUE(store_empties());
}

TEST_F(PagerTest, MemoryGoesOutToATierAndComesBack) {
  start(std::make_unique<TierStore>(compressed(Bytes::mib(4)), file()));
  fill();
  for (std::uint64_t page = 0; page < memory_->pages(); page += 512) {
    EXPECT_EQ(out(page, page + 512).stored, 512U);
    pager_->store().maintain(*pager_);
  }
  EXPECT_GT(pager_->stats().store.spilled, 0U);
  EXPECT_EQ(footprint().count(), 0U);
  EXPECT_EQ(wrong_pages(), 0U);
  EXPECT_TRUE(store_empties());
}

// The moment at which a host pages out is the moment at which it has no memory.
TEST_F(PagerTest, APageThatCannotBeEnteredInTheBookStaysInMemory) {
  start(compressed());
  fill();
  g_no_memory = true;
  const PageWriter::Outcome outcome = out(0, 1024);
  g_no_memory = false;
  EXPECT_EQ(outcome.stored, 0U);
  EXPECT_EQ(memory_->ram().frames(0).run(0, 1024, FrameState::backed), 1024U);
  EXPECT_EQ(pager_->stats().store.pages, 0U) << "a copy that nobody will ask for";
  EXPECT_EQ(wrong_pages(), 0U) << "the only copy was thrown away";
  EXPECT_EQ(out(0, 1024).stored, 1024U) << "there is memory again";
  EXPECT_EQ(wrong_pages(), 0U);
}

// What a dead keeper leaves behind: a thread that touches its memory waits, and is not given zeros.
TEST_F(PagerTest, MemoryLeftRegisteredIsNotAnsweredByTheKernel) {
  start(compressed());
  fill();
  ASSERT_EQ(out(0, 512).stored, 512U);
  UniqueFd guard(::fcntl(memory_->ram().shards()[0].fd(), F_DUPFD_CLOEXEC, 0));
  engine_.reset();
  pager_.reset();
  std::byte* page = memory_->page(7);
  memory_->ram().leave_registered();
  memory_->close_ram();
  std::atomic<bool> answered{false};
  std::thread guest([&] {
    (void)*reinterpret_cast<volatile std::uint64_t*>(page);
    answered = true;
  });
  pollfd polled{guard.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, 2000), 1) << "nobody was asked for the page";
  EXPECT_FALSE(answered);
  guard.reset();
  guest.join();
}

TEST_F(PagerTest, ZeroPagesAreDiscardedAndNotStored) {
  start(compressed());
  testing::fill_compressible(memory_->page(100), 1);
  const PageWriter::Outcome outcome = out(0, 1000);
  EXPECT_EQ(outcome.zero, 999U);
  EXPECT_EQ(outcome.stored, 1U);
  EXPECT_EQ(memory_->ram().frames(0).state(7), FrameState::absent);
  EXPECT_EQ(*reinterpret_cast<volatile std::uint64_t*>(memory_->page(7)), 0U);
}

TEST_F(PagerTest, SwapInStormOfAllFramesAtOnce) {
  for (const bool to_file : {false, true}) {
    start(to_file ? std::unique_ptr<PageStore>(file()) : compressed(), Bytes::mib(32));
    fill();
    ASSERT_EQ(out(0, memory_->pages()).stored, memory_->pages());
    std::atomic<std::uint64_t> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        PageBuffer expected(1);
        for (const std::uint64_t page : shuffled_pages(t)) {
          testing::fill_compressible(expected.page(0), 1000003 + page);
          wrong += std::memcmp(memory_->page(page), expected.page(0), kPageSize) == 0 ? 0 : 1;
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    EXPECT_EQ(wrong, 0U);
    EXPECT_TRUE(store_empties());
    engine_.reset();
    pager_.reset();
    memory_.reset();
  }
}

// A store whose medium takes its time, and whose reader sleeps meanwhile.
class SleepyStore final : public PageStore {
 public:
  SleepyStore(std::unique_ptr<PageStore> store, std::chrono::microseconds time)
      : store_(std::move(store)), time_(time) {}
  StoreStatus put(std::span<PagePut> pages) override { return store_->put(pages); }
  StoreStatus get(std::span<PageGet> pages) override {
    std::this_thread::sleep_for(time_);
    const StoreStatus status = store_->get(pages);
    for (PageGet& page : pages) {
      page.slept = true;
    }
    return status;
  }
  void free(Slot slot) override { store_->free(slot); }
  void maintain(SlotOwner& owner) override { store_->maintain(owner); }
  [[nodiscard]] StoreStats stats() const override { return store_->stats(); }

 private:
  std::unique_ptr<PageStore> store_;
  std::chrono::microseconds time_;
};

// The answered thread is to have the CPU, not a reader that looks for the next fault.
TEST_F(PagerTest, WhoSleptForADiskSleepsAgainAfterTheAnswer) {
  FaultEngine::Options looks_long;
  looks_long.max_spin = std::chrono::seconds(1);
  for (const bool sleepy : {false, true}) {
    auto store = std::make_unique<SleepyStore>(compressed(), std::chrono::microseconds(100));
    start(sleepy ? std::unique_ptr<PageStore>(std::move(store)) : compressed(), Bytes::mib(4));
    engine_.reset();
    engine_ = std::make_unique<FaultEngine>(memory_->ram(), looks_long, pager_.get());
    fill();
    ASSERT_EQ(out(0, memory_->pages()).stored, memory_->pages());
    EXPECT_EQ(wrong_pages(), 0U);
    const EngineStats stats = engine_->stats();
    ASSERT_GT(stats.missing_faults, 0U);
    if (sleepy) {
      EXPECT_GE(stats.sleeps, stats.missing_faults);
    } else {
      EXPECT_LT(stats.sleeps, stats.missing_faults);
    }
    engine_.reset();
    pager_.reset();
    memory_.reset();
  }
}

// While one reader sleeps for its disk, the other looks neither again and again for messages that
// only the first can take, nor does it miss any.
TEST_F(PagerTest, AReaderIsNotAwakeForMessagesThatAnotherWillTake) {
  shards_ = 2;
  start(std::make_unique<SleepyStore>(compressed(), std::chrono::milliseconds(2)), Bytes::mib(16));
  fill();
  ASSERT_EQ(out(0, memory_->pages()).stored, memory_->pages());
  const EngineStats before = engine_->stats();
  constexpr std::uint64_t kThreads = 6;
  constexpr std::uint64_t kTouches = 40;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(t);
      for (std::uint64_t i = 0; i < kTouches; ++i) {
        (void)*reinterpret_cast<volatile std::uint64_t*>(
            memory_->page(random() % memory_->pages()));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const EngineStats after = engine_->stats();
  EXPECT_GT(after.missing_faults - before.missing_faults, kTouches);
  // Some for each fault: its own, another reader's for the same, after the answer. Else hundreds.
  EXPECT_LE(after.sleeps - before.sleeps, 10 * (after.missing_faults - before.missing_faults));
  EXPECT_EQ(wrong_pages(), 0U);
}

// Whoever is asleep, whoever serves whose shard: a message that nobody looks at would stop the
// guest.
TEST_F(PagerTest, NoFaultIsForgottenWhileReadersSleepForTheirDisk) {
  shards_ = 2;
  start(std::make_unique<SleepyStore>(compressed(), std::chrono::microseconds(20)), Bytes::mib(8));
  fill();
  for (int round = 0; round < 9; ++round) {
    ASSERT_EQ(out(0, memory_->pages()).stored, memory_->pages());
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 1U + static_cast<unsigned>(round) % 3; ++t) {
      threads.emplace_back([this, t] {
        for (const std::uint64_t page : shuffled_pages(t)) {
          (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(page));
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  EXPECT_EQ(wrong_pages(), 0U);
}

// Threads write to pages at the very moment they are paged out; every write is accounted for.
void PagerTest::write_beside_page_out() {
  fill();
  std::atomic<bool> stop{false};
  constexpr unsigned kThreads = 3;
  std::vector<std::vector<std::uint64_t>> written(kThreads,
                                                  std::vector<std::uint64_t>(memory_->pages(), 0));
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      while (!stop) {
        // A word of its own in each page; neighbours at once, as fault and write collide most then.
        const std::uint64_t page = random() % memory_->pages();
        auto* word = reinterpret_cast<std::uint64_t*>(memory_->page(page)) + 100 + t;
        __atomic_store_n(word, ++written[t][page], __ATOMIC_RELAXED);
      }
    });
  }
  std::uint64_t gone = 0;
  std::uint64_t raced = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(40);
  while (gone < 40000 && std::chrono::steady_clock::now() < end) {
    const PageWriter::Outcome outcome = out(0, memory_->pages());
    gone += outcome.stored + outcome.zero;
    raced += outcome.raced;
    pager_->store().maintain(*pager_);
  }
  stop = true;
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::uint64_t lost = 0;
  for (unsigned t = 0; t < kThreads; ++t) {
    for (std::uint64_t page = 0; page < memory_->pages(); ++page) {
      const std::uint64_t now = reinterpret_cast<std::uint64_t*>(memory_->page(page))[100 + t];
      lost += written[t][page] != 0 && now != written[t][page] ? 1 : 0;
    }
  }
  EXPECT_EQ(lost, 0U);
  EXPECT_GE(gone, 20000U);
  EXPECT_GT(raced, 0U) << "no write ever raced: the test has not tested anything";
  RecordProperty("paged_out", std::to_string(gone));
  RecordProperty("raced", std::to_string(raced));
}

TEST_F(PagerTest, NoWriteIsLostBesidePageOut) {
  start(compressed(), Bytes::mib(8));
  write_beside_page_out();
}

// With a batch under way while the next one is protected, and the one before it punched.
TEST_F(PagerTest, NoWriteIsLostBesidePageOutToADisk) {
  start(file(), Bytes::mib(8));
  write_beside_page_out();
}

TEST_F(PagerTest, AWriteWhileTheDiskWorksKeepsThePageInMemory) {
  start(file());
  fill();
  std::vector<std::uint64_t> batch(PageWriter::kBatch);
  std::iota(batch.begin(), batch.end(), 0);
  const PageWriter::Outcome none = writer_->write(0, batch);
  EXPECT_EQ(none.stored + none.zero + none.raced, 0U) << "told before it was done";
  EXPECT_EQ(writer_->under_way(), PageWriter::kBatch);
  testing::fill_compressible(memory_->page(7), 1000003 * 5);
  std::iota(batch.begin(), batch.end(), PageWriter::kBatch);
  const PageWriter::Outcome first = writer_->write(0, batch);
  EXPECT_EQ(first.stored, PageWriter::kBatch - 1);
  EXPECT_EQ(first.raced, 1U);
  EXPECT_EQ(writer_->flush().stored, PageWriter::kBatch);
  EXPECT_EQ(writer_->under_way(), 0U);
  PageBuffer expected(1);
  testing::fill_compressible(expected.page(0), 1000003 * 5);
  EXPECT_EQ(std::memcmp(memory_->page(7), expected.page(0), kPageSize), 0);
  EXPECT_EQ(wrong_pages(), 1U) << "beside the page that was written anew";
  EXPECT_TRUE(store_empties());
}

// Discards for the balloon and page-outs on the same frames at once.
TEST_F(PagerTest, TheBalloonsDiscardsLeavePagedPagesAlone) {
  start(compressed(), Bytes::mib(8));
  fill();
  GuardedDiscarder discarder(memory_->ram());
  std::atomic<bool> stop{false};
  std::thread discards([&] {
    while (!stop) {
      (void)discarder.discard(0, memory_->all());
    }
  });
  for (int round = 0; round < 20; ++round) {
    (void)out(0, memory_->pages());
    ASSERT_EQ(wrong_pages(), 0U) << "round " << round;
  }
  stop = true;
  discards.join();
  EXPECT_EQ(wrong_pages(), 0U);
}

// SIGBUS is what a process is told about a page that is lost.
sigjmp_buf g_lost;
void on_sigbus(int) { siglongjmp(g_lost, 1); }

bool touching_kills(const std::byte* page) {
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = on_sigbus;
  ::sigaction(SIGBUS, &action, &old);
  volatile bool killed = true;
  if (sigsetjmp(g_lost, 1) == 0) {
    (void)*reinterpret_cast<const volatile std::uint64_t*>(page);
    killed = false;
  }
  ::sigaction(SIGBUS, &old, nullptr);
  return killed;
}

TEST_F(PagerTest, ADamagedPageIsPoisonedAndNeverZeroOrStale) {
  if (!Userfaultfd::kernel_features().value().has(UffdFeature::poison)) {
    GTEST_SKIP() << "this kernel has no UFFDIO_POISON (Linux 6.6)";
  }
  start(file());
  fill();
  ASSERT_EQ(out(0, 64).stored, 64U);
  // Damage slot 17 on the disk, behind the store's back.
  {
    auto& store = static_cast<FileStore&>(pager_->store());
    const char path[] = "/proc/self/fd/";
    const UniqueFd fd(::open((path + std::to_string(store.file().fd())).c_str(), O_RDWR));
    ASSERT_TRUE(fd.valid());
    const auto at = static_cast<off_t>((StoreFile::kContentStart + Bytes::pages(17)).count());
    ASSERT_EQ(::pwrite(fd.get(), "damaged!", 8, at), 8);
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  EXPECT_TRUE(touching_kills(memory_->page(17)));
  EXPECT_TRUE(touching_kills(memory_->page(17))) << "a second touch got something else";
  EXPECT_FALSE(touching_kills(memory_->page(16)));
  EXPECT_FALSE(touching_kills(memory_->page(18)));
  const auto all = events();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all[0].kind, PagerEvent::Kind::page_lost);
  EXPECT_EQ(all[0].page, 17U);
  EXPECT_EQ(all[0].status, StoreStatus::corrupt);
  EXPECT_THAT(to_string(all[0]), HasSubstr("page 17"));
}

// Linux before 6.6: the thread waits. It must not cost a CPU and a log, and no detach may turn the
// page into zeros.
TEST_F(PagerTest, WithoutPoisonALostPageIsToldOnceAndHeldBackForGood) {
  Pager::Options options;
  options.poison = false;
  start(file(), Bytes::mib(2), Resolver::zeropage, options);
  fill();
  ASSERT_EQ(out(0, 64).stored, 64U);
  const int disk = static_cast<FileStore&>(pager_->store()).file().fd();
  const auto at = static_cast<off_t>((StoreFile::kContentStart + Bytes::pages(17)).count());
  const std::string path = "/proc/self/fd/" + std::to_string(disk);
  const UniqueFd fd(::open(path.c_str(), O_RDWR));
  std::array<char, 8> good{};
  ASSERT_EQ(::pread(fd.get(), good.data(), good.size(), at), 8);
  ASSERT_EQ(::pwrite(fd.get(), "damaged!", 8, at), 8);
  ASSERT_EQ(::fsync(fd.get()), 0);
  std::atomic<bool> went_on{false};
  std::thread guest([&] {
    (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(17));
    went_on = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(went_on);
  EXPECT_LE(pager_->stats().faults, 2U) << "the disk is read again and again";
  EXPECT_EQ(pager_->stats().lost_pages, 1U);
  const auto all = events();
  ASSERT_EQ(all.size(), 1U) << "told once";
  EXPECT_THAT(to_string(all[0]), HasSubstr("cannot poison"));
  const Pager::Progress end = pager_->page_in_all([](const auto&) { return true; });
  EXPECT_EQ(end.lost, 0U) << "counted as dealt with: the keeper would leave, and zeros come";
  EXPECT_EQ(pager_->stats().paged_pages, 1U);
  // A disk that comes back gives it after all.
  ASSERT_EQ(::pwrite(fd.get(), good.data(), good.size(), at), 8);
  ASSERT_EQ(::fsync(fd.get()), 0);
  guest.join();
  EXPECT_EQ(wrong_pages(), 0U);
}

TEST_F(PagerTest, AFileThatLostItsEndPoisonsAndGoesOn) {
  if (!Userfaultfd::kernel_features().value().has(UffdFeature::poison)) {
    GTEST_SKIP() << "this kernel has no UFFDIO_POISON (Linux 6.6)";
  }
  start(file());
  fill();
  ASSERT_EQ(out(0, 64).stored, 64U);
  ASSERT_EQ(::ftruncate(static_cast<FileStore&>(pager_->store()).file().fd(), 32 * kPageSize), 0);
  EXPECT_FALSE(touching_kills(memory_->page(3)));
  EXPECT_TRUE(touching_kills(memory_->page(40)));
  EXPECT_EQ(events().at(0).status, StoreStatus::io_error);
}

TEST_F(PagerTest, AFullStoreStopsPageOutAndTheGuestGoesOn) {
  start(compressed(Bytes::mib(2)));
  fill();
  PagerService::Options options;
  options.look_interval = std::chrono::milliseconds(50);
  options.min_age = 1;
  options.retry = std::chrono::milliseconds(100);
  serve(options);
  service_->set_goal(Bytes(0));
  ASSERT_TRUE(eventually([&] { return service_->status().state == PagerService::State::stopped; }));
  EXPECT_EQ(service_->status().stop_reason, StoreStatus::full);
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  const auto all = events();
  ASSERT_EQ(all.size(), 1U) << "told once, not once a retry";
  EXPECT_EQ(to_string(all[0]), "page-out stopped: the store is full");
  service_->clear_goal();
  EXPECT_EQ(wrong_pages(), 0U);
}

TEST_F(PagerTest, AFullFileSystemStopsPageOutAndTheGuestGoesOn) {
  // In a mount namespace of our own: nothing is left behind however the test ends.
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("tmpfs", directory_.c_str(), "tmpfs", 0, "size=40m") != 0) {
    GTEST_SKIP() << "mounting a small file system needs root";
  }
  start(file(Bytes::mib(32)));
  fill();
  std::ofstream(directory_ + "/other") << std::string(30 << 20, 'x');
  const PageWriter::Outcome outcome = out(0, memory_->pages());
  EXPECT_EQ(outcome.status, StoreStatus::full);
  EXPECT_LT(outcome.stored, memory_->pages());
  EXPECT_EQ(wrong_pages(), 0U);
  std::filesystem::remove(directory_ + "/other");
  EXPECT_EQ(out(0, memory_->pages()).stored, memory_->pages()) << "room again, and not used";
  EXPECT_EQ(wrong_pages(), 0U);
  engine_.reset();
  pager_.reset();
  EXPECT_EQ(::umount(directory_.c_str()), 0);
}

TEST_F(PagerTest, PageOutWaitsWhileFaultsWait) {
  start(compressed(), Bytes::mib(64));
  fill();
  engine_.reset();  // nobody answers: what is touched waits
  ASSERT_EQ(out(0, 512).stored, 512U);
  std::thread guest([&] { (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(7)); });
  ASSERT_TRUE(eventually([&] {
    pollfd polled{memory_->ram().shards()[0].fd(), POLLIN, 0};
    return ::poll(&polled, 1, 0) == 1;
  }));
  PagerService::Options options;
  options.look_interval = std::chrono::milliseconds(10);
  options.min_age = 0;
  serve(options);
  const std::uint64_t before = pager_->stats().paged_out;
  const auto since = std::chrono::steady_clock::now();
  service_->set_goal(Bytes(0));
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  service_->clear_goal();
  const std::uint64_t batches = (pager_->stats().paged_out - before) / PageWriter::kBatch;
  const auto spent = std::chrono::steady_clock::now() - since;
  // One batch for each 20 ms of waiting; without, all 31 in a few milliseconds each.
  EXPECT_LE(batches, static_cast<std::uint64_t>(spent / std::chrono::milliseconds(20)) + 2)
      << "page-out took the CPU and the disk from a fault";
  engine_ = std::make_unique<FaultEngine>(memory_->ram(), FaultEngine::Options(), pager_.get());
  guest.join();
  EXPECT_EQ(wrong_pages(), 0U);
}

TEST_F(PagerTest, DetachBringsEverythingBackWhileTheGuestWrites) {
  start(std::make_unique<TierStore>(compressed(Bytes::mib(4)), file()));
  fill();
  ASSERT_EQ(out(0, memory_->pages()).stored, memory_->pages());
  serve({});
  std::atomic<bool> stop{false};
  std::thread guest([&] {
    std::mt19937_64 random(1);
    while (!stop) {
      (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(random() % memory_->pages()));
    }
  });
  std::vector<std::uint64_t> seen;
  const Pager::Progress done = service_->detach([&](const Pager::Progress& progress) {
    seen.push_back(progress.done);
    return true;
  });
  stop = true;
  guest.join();
  EXPECT_EQ(done.lost, 0U);
  EXPECT_EQ(pager_->stats().paged_pages, 0U);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_GE(seen.size(), memory_->pages() / 512);
  EXPECT_EQ(memory_->ram().frames(0).count(FrameState::paged), 0U);
  engine_.reset();  // nobody answers faults any more: all must be there
  EXPECT_EQ(wrong_pages(), 0U);
}

/// The largest footprint seen while `work` runs in a thread of its own.
template <class Work>
Bytes peak_during(const FillLimit& ram, Work&& work) {
  std::atomic<bool> done{false};
  std::thread guest([&] {
    work();
    done = true;
  });
  Bytes peak;
  while (!done) {
    peak = std::max(peak, ram.footprint());
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  guest.join();
  return peak;
}

// A guest that fills memory as fast as it can, under a ceiling: a host that promised the rest to
// others would be out of memory.
TEST_F(PagerTest, AGuestThatFillsFastStaysBelowItsCeilingAndLosesNothing) {
  start(file(Bytes::mib(64)), Bytes::mib(64));
  for (std::uint64_t page = 0; page < memory_->pages(); ++page) {
    ASSERT_TRUE(pager_->ram().frames(0).state(page) == FrameState::backed);
  }
  // Give all of it away first, as a balloon would.
  ASSERT_EQ(out(0, memory_->pages()).zero, memory_->pages());
  serve({});
  const Bytes ceiling = Bytes::mib(24);
  service_->set_ceiling(ceiling);
  const Bytes peak = peak_during(pager_->ram().fill_limit(), [&] { fill(); });
  EXPECT_LE(peak, ceiling + Bytes::pages(2 * FillLimit::kCredit));
  EXPECT_GT(pager_->stats().paged_pages, 0U);
  const Bytes peak_of_reading =
      peak_during(pager_->ram().fill_limit(), [&] { EXPECT_EQ(wrong_pages(), 0U); });
  EXPECT_LE(peak_of_reading, ceiling + Bytes::pages(2 * FillLimit::kCredit));
  EXPECT_GT(service_->status().held_faults, 0U) << "the ceiling was never touched";
  service_->set_ceiling(std::nullopt);
  EXPECT_EQ(wrong_pages(), 0U);
}

// What was in use when it was looked at is unmapped, and the guest faults it in again: that must
// not be all it has, for the little that has to go.
TEST_F(PagerTest, ALittleRoomBelowACeilingCostsALookAtLittle) {
  start(compressed(Bytes::mib(64)), Bytes::mib(128));
  const std::uint64_t pages = memory_->pages();
  const std::uint64_t filled = pages * 7 / 8;
  ASSERT_EQ(out(filled, pages).zero, pages - filled);
  fill_pages(0, filled);
  serve({});
  service_->set_ceiling(Bytes::mib(118));
  for (std::uint64_t page = filled; page < pages; page += 64) {  // 16 MiB a second
    fill_pages(page, page + 64);
    std::this_thread::sleep_for(std::chrono::milliseconds(16));
  }
  EXPECT_GT(pager_->stats().paged_out, 1024U) << "there was room for everything";
  const std::uint64_t looked = service_->looked_pages();
  EXPECT_GT(looked, 0U);
  EXPECT_LT(looked, pages / 2) << "the whole VM was looked at";
  service_->set_ceiling(std::nullopt);
  EXPECT_EQ(wrong_pages(), 0U);
}

// Room is made of what nobody uses, however much is wanted: else a guest at its ceiling would do
// nothing but page in.
TEST_F(PagerTest, AGuestThatFillsFastAtItsCeilingKeepsWhatItUsesAllTheTime) {
  start(compressed(Bytes::mib(64)), Bytes::mib(64));
  ASSERT_EQ(out(0, memory_->pages()).zero, memory_->pages());
  serve({});
  service_->set_ceiling(Bytes::mib(24));
  constexpr std::uint64_t kHot = 1024;
  const auto touch_hot = [&] {
    for (std::uint64_t page = 0; page < kHot; ++page) {
      *reinterpret_cast<volatile std::uint64_t*>(memory_->page(page) + 64) = page;
    }
  };
  touch_hot();
  std::atomic<bool> stop{false};
  std::thread guest([&] {
    while (!stop) {
      touch_hot();
    }
  });
  for (std::uint64_t page = kHot; page < memory_->pages(); ++page) {
    testing::fill_compressible(memory_->page(page), page);
  }
  stop = true;
  guest.join();
  EXPECT_GT(pager_->stats().paged_out, 8192U) << "there was room for everything";
  std::uint64_t left = 0;
  for (std::uint64_t page = 0; page < kHot; ++page) {
    left += pager_->ram().frames(0).state(page) == FrameState::backed ? 1 : 0;
  }
  EXPECT_GE(left, kHot / 2) << "the working set was paged out";
  EXPECT_LT(pager_->stats().faults, 2 * kHot);
}

TEST_F(PagerTest, ACeilingThatAFullStoreCannotKeepOpensAndTheGuestGoesOn) {
  start(compressed(Bytes::mib(1)), Bytes::mib(32));
  ASSERT_EQ(out(0, memory_->pages()).zero, memory_->pages());
  serve({});
  service_->set_ceiling(Bytes::mib(8));
  const auto before = std::chrono::steady_clock::now();
  fill();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
  EXPECT_EQ(service_->status().state, PagerService::State::stopped);
  const auto all = events();
  ASSERT_FALSE(all.empty()) << "nobody was told";
  EXPECT_EQ(to_string(all[0]), "page-out stopped: the store is full");
  EXPECT_EQ(wrong_pages(), 0U);
}

// By number: the functions do nothing under AddressSanitizer.
long lock_pages(const void* at, std::size_t size) { return ::syscall(SYS_mlock, at, size); }
long unlock_pages(const void* at, std::size_t size) { return ::syscall(SYS_munlock, at, size); }

// A keeper that cannot see what is in use must say so, and not that the VM is gone.
TEST_F(PagerTest, LockedMemoryIsRefusedByNameAndStopsPageOutWithItsReason) {
  start(compressed());
  fill();
  ASSERT_EQ(lock_pages(memory_->base(), 1 << 20), 0);
  const auto refused =
      AccessTracker::create(memory_->ram(), ::getpid(), pager_->all_ages(), AccessMethod::unmap);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("mem-lock=on"));
  ASSERT_EQ(unlock_pages(memory_->base(), 1 << 20), 0);
  PagerService::Options options;
  options.look_interval = std::chrono::milliseconds(20);
  options.retry = std::chrono::milliseconds(100);
  serve(options);
  ASSERT_EQ(lock_pages(memory_->base(), 1 << 20), 0);  // behind its back
  service_->set_goal(Bytes(0));
  ASSERT_TRUE(eventually([&] { return service_->status().state == PagerService::State::stopped; }))
      << to_string(service_->status().state);
  EXPECT_EQ(service_->status().stop_reason, StoreStatus::unseen);
  const auto all = events();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_THAT(to_string(all[0]), HasSubstr("CAP_SYS_NICE"));
  ASSERT_EQ(unlock_pages(memory_->base(), 1 << 20), 0);
  EXPECT_TRUE(eventually([&] { return pager_->stats().paged_out > 0; }));
}

class TrackerTest : public PagerTest, public ::testing::WithParamInterface<AccessMethod> {};
INSTANTIATE_TEST_SUITE_P(Method, TrackerTest,
                         ::testing::Values(AccessMethod::unmap, AccessMethod::write_protect),
                         [](const auto& info) {
                           return info.param == AccessMethod::unmap ? "unmap" : "write_protect";
                         });

TEST_P(TrackerTest, PagesInUseAreYoungAndOthersGrowOld) {
  start(compressed());
  fill();
  auto tracker =
      AccessTracker::create(memory_->ram(), ::getpid(), pager_->all_ages(), GetParam()).value();
  ASSERT_EQ(tracker.look().error, 0);
  for (int i = 0; i < 3; ++i) {
    for (std::uint64_t page = 1000; page < 1100; ++page) {
      *reinterpret_cast<volatile std::uint64_t*>(memory_->page(page) + 64) = page;
    }
    for (std::uint64_t page = 3000; page < 3100; ++page) {
      (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(page));
    }
    const AccessTracker::Look look = tracker.look();
    ASSERT_EQ(look.error, 0);
    EXPECT_GE(look.accessed, 100U);
    EXPECT_LT(look.accessed, 800U) << "fault-around or huge pages blur the picture";
  }
  AgeMap& ages = pager_->ages(0);
  EXPECT_EQ(ages.age(1050), 0U);
  EXPECT_EQ(ages.age(5000), 3U);
  if (GetParam() == AccessMethod::unmap) {
    EXPECT_EQ(ages.age(3050), 0U) << "reads must be seen";
  }
  // A look at a part leaves the rest as it is.
  const HostRange part{HostOffset(4096 * kPageSize), Bytes::pages(1024)};
  *reinterpret_cast<volatile std::uint64_t*>(memory_->page(4100) + 64) = 1;
  const AccessTracker::Look look = tracker.look_at(0, part);
  ASSERT_EQ(look.error, 0);
  EXPECT_GE(look.accessed, 1U);
  EXPECT_EQ(ages.age(4100), 0U);
  EXPECT_EQ(ages.age(5000), 4U);
  EXPECT_EQ(ages.age(6000), 3U);
  EXPECT_EQ(footprint(), Bytes::pages(memory_->pages())) << "looking must not take memory away";
}

TEST_F(PagerTest, PagesOutWhatIsColdAndLeavesTheWorkingSet) {
  if (std::ifstream swaps("/proc/swaps");
      std::count(std::istreambuf_iterator<char>(swaps), {}, '\n') > 1) {
    GTEST_SKIP() << "swap is active on this machine";
  }
  start(compressed());
  fill();
  constexpr std::uint64_t kHot = 2048;  // of 8192
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> laps{0};
  std::thread guest([&] {
    while (!stop) {
      for (std::uint64_t page = 0; page < kHot; ++page) {
        (void)*reinterpret_cast<volatile std::uint64_t*>(memory_->page(page));
      }
      ++laps;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  PagerService::Options options;
  options.look_interval = std::chrono::milliseconds(300);
  serve(options);
  service_->set_goal(Bytes::mib(16));
  ASSERT_TRUE(eventually([&] {
    return service_->status().footprint <= Bytes::mib(16) + Bytes::pages(64);
  })) << to_string(service_->status().state);
  const std::uint64_t faults = pager_->stats().faults;
  EXPECT_LT(faults, kHot / 10) << "the working set was paged out";
  EXPECT_EQ(memory_->ram().frames(0).run(0, kHot, FrameState::backed), kHot);
  stop = true;
  guest.join();
  EXPECT_GT(laps, 10U);
  service_.reset();
  EXPECT_EQ(wrong_pages(), 0U);
}

TEST_F(PagerTest, StaysWithinItsMemoryBounds) {
  start(compressed(Bytes::mib(32)), Bytes::mib(64));
  const std::uint64_t all = memory_->pages();
  fill();
  // Beside the pages: fixed buffers, which do not grow with the VM.
  const std::uint64_t fixed = sizeof(WordTable);
  EXPECT_LE(pager_->stats().metadata.count(), 2 * all + fixed);
  ASSERT_EQ(out(0, all / 2).stored, all / 2);
  EXPECT_LE(pager_->stats().metadata.count(), 2 * (all / 2) + 16 * (all / 2) + fixed);
  ASSERT_EQ(out(all / 2, all).stored, all / 2);
  EXPECT_LE(pager_->stats().metadata.count(), 16 * all + fixed);
  RecordProperty("bytes_per_paged_page",
                 std::to_string((pager_->stats().metadata.count() - fixed) / all));
}

// A keeper that gives no answer for two seconds is killed as one that hangs, and started again:
// while a disk is slow it must answer.
TEST_F(PagerTest, AStoreThatIsSlowToOpenIsWaitedForWithoutHoldingUpTheKeeper) {
  start(compressed());
  std::atomic<bool> disk_is_there{false};
  for (const bool throws : {false, true}) {
    disk_is_there = false;
    faultd::PagingHost host(
        memory_->ram(), ::getpid(), directory_ + "/keeper",
        [&](WatchedRam&, pid_t, const PagingOptions&) -> Result<std::unique_ptr<Paging>> {
          while (!disk_is_there) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          if (throws) {
            throw std::runtime_error("the disk is damaged");
          }
          return Error{"the disk is damaged"};
        });
    faultd::PagingRequest request;
    auto reply = std::make_unique<faultd::PagingReply>();
    const auto ask = [&](faultd::PagingVerb verb) {
      request.verb = verb;
      *reply = {};
      host.answer(request, *reply);
    };
    ask(faultd::PagingVerb::start);  // without the thread of its own, this is where it ends
    EXPECT_EQ(reply->ok, 1U);
    ask(faultd::PagingVerb::status);
    EXPECT_EQ(reply->starting, 1U);
    EXPECT_EQ(reply->active, 0U);
    ask(faultd::PagingVerb::start);
    EXPECT_THAT(reply->message.data(), HasSubstr("being opened"));
    EXPECT_FALSE(host.leave()) << "it would take the memory from under the opener";
    disk_is_there = true;
    ASSERT_TRUE(eventually([&] {
      ask(faultd::PagingVerb::status);
      return reply->starting == 0;
    }));
    EXPECT_THAT(reply->message.data(), HasSubstr("the disk is damaged"));
    EXPECT_TRUE(host.leave());
  }
}

TEST_F(PagerTest, PrivateMemoryIsRefusedByName) {
  OwnMemoryOptions options;
  options.kind = testing::MemoryKind::anonymous;
  const OwnMemory anonymous(options);
  const auto pager = Pager::create(const_cast<OwnMemory&>(anonymous).ram(), compressed());
  ASSERT_FALSE(pager);
  EXPECT_THAT(pager.error().message, HasSubstr("memory-backend-memfd,share=on"));
}

}  // namespace
}  // namespace fileballoon
