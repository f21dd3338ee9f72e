// The file store and the tier on this machine's disk: content must come back, damage must be
// noticed, and a path that is not ours to write on must be refused by name.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/unit/store_pages.h"
#include "uffd/pager/tier_store.h"

namespace fileballoon {
namespace {

using ::testing::HasSubstr;
using testing::Owner;
using testing::Pages;

class StoreFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    // Beside the build, not in /tmp, which may be a tmpfs.
    std::string pattern = std::filesystem::current_path().string() + "/store.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string touch(const std::string& name) {
    const std::string path = directory_ + "/" + name;
    std::ofstream file(path);
    return path;
  }
  static std::unique_ptr<FileStore> open(const std::string& path, Bytes limit,
                                         std::shared_ptr<WriteBudget> budget = nullptr,
                                         const std::string& owner = "vm1") {
    return std::make_unique<FileStore>(StoreFile::open({path, limit, owner}).value(),
                                       std::move(budget));
  }
  static std::string refusal(const std::string& path, Bytes limit = Bytes::mib(1),
                             const std::string& owner = "vm1") {
    const auto file = StoreFile::open({path, limit, owner});
    return file ? "was accepted" : file.error().message;
  }

  std::string directory_;
};

TEST_F(StoreFiles, PagesComeBackFromAnUnnamedFile) {
  const auto store = open(directory_, Bytes::mib(32));
  Pages pages = Pages::random(2000);
  ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
  EXPECT_EQ(pages.puts[1999].slot.value, 1999U) << "not written as one run";
  for (std::size_t i = 0; i < pages.puts.size(); i += 7) {
    ASSERT_EQ(pages.fetch(*store, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same);
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

TEST_F(StoreFiles, ABatchIsThereWhenItIsFinishedAndWhoPutsNextWaitsForIt) {
  const auto store = open(directory_, Bytes::mib(32));
  Pages first = Pages::random(1000);
  Pages second = Pages::compressible(1000);
  ASSERT_TRUE(store->start(first.puts));
  ASSERT_EQ(store->put(second.puts), StoreStatus::ok);
  store->finish();
  for (std::size_t i = 0; i < first.puts.size(); ++i) {
    ASSERT_EQ(first.puts[i].status, StoreStatus::ok);
    ASSERT_EQ(first.fetch(*store, i), StoreStatus::ok);
    ASSERT_TRUE(first.same) << i;
    ASSERT_EQ(second.fetch(*store, i), StoreStatus::ok);
    ASSERT_TRUE(second.same) << i;
  }
  EXPECT_EQ(store->stats().pages, 2000U);
}

TEST_F(StoreFiles, ABatchThatHasNoRoomAtAllIsDoneAtOnce) {
  const auto store = open(directory_, Bytes::mib(1));
  Pages pages = Pages::random(256);
  ASSERT_TRUE(store->start(pages.puts));
  store->finish();
  Pages more = Pages::random(10);
  EXPECT_FALSE(store->start(more.puts));
  EXPECT_EQ(more.puts[9].status, StoreStatus::full);
}

// Readers wait in both ways, one after the other, and say in which: the engine waits accordingly.
TEST_F(StoreFiles, SaysWhetherItSleptForTheDisk) {
  const auto store = open(directory_, Bytes::mib(32));
  Pages pages = Pages::random(64);
  ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
  PageBuffer back(1);
  std::array<int, 2> reads{};
  for (std::uint32_t i = 0; i < 2 * WaitChoice::kPeriod; ++i) {
    const PagePut& put = pages.puts[i % 64];
    PageGet get{put.key, put.slot, back.page(0)};
    ASSERT_EQ(store->get({&get, 1}), StoreStatus::ok);
    ASSERT_EQ(std::memcmp(back.page(0), put.data, kPageSize), 0);
    ++reads.at(get.slept ? 1 : 0);
  }
  EXPECT_GE(reads[0], static_cast<int>(WaitChoice::kTrial));
  EXPECT_GE(reads[1], static_cast<int>(WaitChoice::kTrial));
}

TEST_F(StoreFiles, ManyPagesAtOnceInAnyOrder) {
  const auto store = open(touch("pages"), Bytes::mib(8));
  Pages pages = Pages::random(500);
  ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
  PageBuffer back(pages.puts.size());
  std::vector<PageGet> gets;
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    const PagePut& put = pages.puts[(i * 37) % pages.puts.size()];
    gets.push_back({put.key, put.slot, back.page(i)});
  }
  ASSERT_EQ(store->get(gets), StoreStatus::ok);
  for (const PageGet& get : gets) {
    ASSERT_EQ(std::memcmp(get.out, pages.puts[get.key.index].data, kPageSize), 0);
  }
}

TEST_F(StoreFiles, DamageOnDiskIsNoticed) {
  const std::string path = touch("pages");
  const auto store = open(path, Bytes::mib(1));
  Pages pages = Pages::random(3);
  ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
  {
    const UniqueFd fd(::open(path.c_str(), O_RDWR));
    const char flipped = static_cast<char>(~std::to_integer<int>(pages.puts[1].data[100]));
    const auto at = static_cast<off_t>((StoreFile::kContentStart + Bytes::pages(1)).count() + 100);
    ASSERT_EQ(::pwrite(fd.get(), &flipped, 1, at), 1);
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  EXPECT_EQ(pages.fetch(*store, 0), StoreStatus::ok);
  EXPECT_EQ(pages.fetch(*store, 1), StoreStatus::corrupt);
  EXPECT_EQ(pages.fetch(*store, 2), StoreStatus::ok);
  std::swap(pages.puts[0].slot, pages.puts[2].slot);
  EXPECT_EQ(pages.fetch(*store, 0), StoreStatus::corrupt) << "another page's content passed";
  EXPECT_EQ(store->stats().corrupt, 2U);
}

TEST_F(StoreFiles, AShortenedFileIsAnErrorAndNeverZeros) {
  const std::string path = touch("pages");
  const auto store = open(path, Bytes::mib(1));
  Pages pages = Pages::random(10);
  ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
  ASSERT_EQ(::truncate(path.c_str(), 3 * kPageSize), 0);
  EXPECT_EQ(pages.fetch(*store, 1), StoreStatus::ok);
  EXPECT_EQ(pages.fetch(*store, 5), StoreStatus::io_error);
  EXPECT_EQ(store->stats().io_errors, 1U);
}

TEST_F(StoreFiles, FullStoreRefusesAndGoesOnAfterFrees) {
  const auto store = open(directory_, Bytes::pages(100));
  Pages pages = Pages::random(120);
  EXPECT_EQ(store->put(pages.puts), StoreStatus::full);
  EXPECT_EQ(pages.puts[99].status, StoreStatus::ok);
  EXPECT_EQ(pages.puts[100].status, StoreStatus::full);
  for (std::size_t i = 0; i < 100; i += 5) {
    store->free(pages.puts[i].slot);
  }
  const std::span<PagePut> rest = std::span(pages.puts).subspan(100);
  EXPECT_EQ(store->put(rest), StoreStatus::ok);
  for (std::size_t i = 100; i < 120; ++i) {
    ASSERT_EQ(pages.fetch(*store, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same);
  }
}

TEST_F(StoreFiles, TheWriteBudgetStopsWriting) {
  const std::shared_ptr<WriteBudget> budget =
      WriteBudget::open(directory_ + "/budget", Bytes::pages(50), WriteBudget::now()).value();
  const auto store = open(directory_, Bytes::mib(1), budget);
  Pages pages = Pages::random(60);
  const std::span<PagePut> all(pages.puts);
  EXPECT_EQ(store->put(all.first(50)), StoreStatus::ok);
  EXPECT_EQ(store->put(all.subspan(50)), StoreStatus::over_budget);
  EXPECT_EQ(store->stats().pages, 50U);
  EXPECT_EQ(pages.fetch(*store, 49), StoreStatus::ok) << "reading is always allowed";
}

TEST_F(StoreFiles, RefusesPathsThatAreNotAStore) {
  EXPECT_THAT(refusal(directory_ + "/none"), HasSubstr("No such file"));
  EXPECT_THAT(refusal(directory_ + "/none"), HasSubstr(directory_ + "/none"));
  EXPECT_THAT(refusal("/dev/null"), HasSubstr("neither a directory nor a file nor a block device"));
  std::ofstream(directory_ + "/letter") << "Dear Sir or Madam";
  EXPECT_THAT(refusal(directory_ + "/letter"), HasSubstr("something that is not a page store"));
  std::ifstream letter(directory_ + "/letter");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(letter), {}), "Dear Sir or Madam");
  EXPECT_THAT(refusal(directory_, Bytes::gib(1 << 20)), HasSubstr("too small"));
}

TEST_F(StoreFiles, RefusesAnotherVmsPagesByName) {
  const std::string path = touch("pages");
  {
    const auto store = open(path, Bytes::mib(1), nullptr, "database");
    EXPECT_THAT(refusal(path, Bytes::mib(1), "database"), HasSubstr("in use by another process"));
  }
  EXPECT_THAT(refusal(path, Bytes::mib(1), "web"),
              HasSubstr("holds pages of VM 'database', not of 'web'"));
  EXPECT_EQ(refusal(path, Bytes::mib(1), "database"), "was accepted");
}

/// A block device of this size, over a file without a name; gone with this.
class LoopDevice {
 public:
  LoopDevice(const std::string& directory, Bytes size) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const int number = control.valid() ? ::ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
    const UniqueFd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (number < 0 || ::ftruncate(file.get(), static_cast<off_t>(size.count())) != 0) {
      return;
    }
    path_ = "/dev/loop" + std::to_string(number);
    device_ = UniqueFd(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    loop_config config{};
    config.fd = static_cast<std::uint32_t>(file.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    made_ = device_.valid() && ::ioctl(device_.get(), LOOP_CONFIGURE, &config) == 0;
  }
  [[nodiscard]] bool made() const { return made_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  void write(const std::string& what, off_t at) const {
    EXPECT_EQ(::pwrite(device_.get(), what.data(), what.size(), at),
              static_cast<ssize_t>(what.size()));
    EXPECT_EQ(::fsync(device_.get()), 0);
  }

 private:
  std::string path_;
  UniqueFd device_;
  bool made_ = false;
};

TEST_F(StoreFiles, ABlockDeviceIsAStoreOfItsOwner) {
  const LoopDevice device(directory_, Bytes::mib(8));
  if (!device.made()) {
    GTEST_SKIP() << "a block device needs root and a free /dev/loop*";
  }
  EXPECT_THAT(refusal(device.path(), Bytes::mib(8)), HasSubstr("too small"))
      << "an owner page more";
  {
    const auto store = open(device.path(), Bytes::mib(4));
    Pages pages = Pages::random(1000);
    ASSERT_EQ(store->put(pages.puts), StoreStatus::ok);
    for (std::size_t i = 0; i < pages.puts.size(); ++i) {
      ASSERT_EQ(pages.fetch(*store, i), StoreStatus::ok);
      ASSERT_TRUE(pages.same);
    }
    Pages more = Pages::random(25);
    EXPECT_EQ(store->put(more.puts), StoreStatus::full) << "past what it was given of the device";
  }
  EXPECT_THAT(refusal(device.path(), Bytes::mib(1), "web"), HasSubstr("holds pages of VM 'vm1'"));
}

TEST_F(StoreFiles, ABlockDeviceWithAFileSystemIsLeftAsItIs) {
  const LoopDevice device(directory_, Bytes::mib(8));
  if (!device.made()) {
    GTEST_SKIP() << "a block device needs root and a free /dev/loop*";
  }
  device.write("_BHRfS_M", 65536 + 64);  // where btrfs has its mark
  EXPECT_THAT(refusal(device.path()), HasSubstr("something that is not a page store"));
}

TEST_F(StoreFiles, ALimitOnFileSizesIsNamed) {
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  struct rlimit small = old;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = refusal(directory_, Bytes::mib(2));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_THAT(message, HasSubstr("RLIMIT_FSIZE"));
}

TEST_F(StoreFiles, TierSpillsTheOldestAndKeepsEverything) {
  TierStore tier(std::make_unique<CompressedStore>(CompressedStoreOptions{Bytes::mib(2)}),
                 open(directory_, Bytes::mib(64)));
  Pages pages = Pages::compressible(4000);  // about 5.5 MiB compressed
  Owner owner(pages.puts);
  const std::span<PagePut> all(pages.puts);
  for (std::size_t at = 0; at < all.size(); at += 100) {
    ASSERT_EQ(tier.put(all.subspan(at, 100)), StoreStatus::ok);
    tier.maintain(owner);
  }
  const StoreStats stats = tier.stats();
  EXPECT_EQ(stats.pages, 4000U);
  EXPECT_GT(stats.spilled, 1000U);
  EXPECT_LE(stats.memory, Bytes::mib(2));
  const auto in_file = [&](std::size_t i) { return (pages.puts[i].slot.value >> 31) != 0; };
  EXPECT_TRUE(in_file(0)) << "the oldest page is still in memory";
  EXPECT_FALSE(in_file(3999)) << "the newest page went to the file";
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    ASSERT_EQ(pages.fetch(tier, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same) << i;
    tier.free(pages.puts[i].slot);
    pages.puts[i].slot = Slot{};
  }
  EXPECT_EQ(tier.stats().pages, 0U);
}

TEST_F(StoreFiles, TierSendsNoiseToTheFile) {
  TierStore tier(std::make_unique<CompressedStore>(CompressedStoreOptions{Bytes::mib(2)}),
                 open(directory_, Bytes::mib(4)));
  Pages pages = Pages::random(64);
  testing::fill_compressible(pages.buffer.page(10), 1);
  EXPECT_EQ(tier.put(pages.puts), StoreStatus::ok);
  EXPECT_EQ(tier.stats().file_pages, 63U);
  std::vector<PageGet> gets;
  PageBuffer back(64);
  for (std::size_t i = 0; i < 64; ++i) {
    gets.push_back({pages.puts[i].key, pages.puts[i].slot, back.page(i)});
  }
  ASSERT_EQ(tier.get(gets), StoreStatus::ok);
  for (std::size_t i = 0; i < 64; ++i) {
    ASSERT_EQ(std::memcmp(gets[i].out, pages.puts[i].data, kPageSize), 0);
    ASSERT_EQ(gets[i].slot, pages.puts[i].slot);
  }
}

TEST_F(StoreFiles, TierWithAFullFileStopsAndLosesNothing) {
  TierStore tier(std::make_unique<CompressedStore>(CompressedStoreOptions{Bytes::mib(1)}),
                 open(directory_, Bytes::mib(1)));
  Pages pages = Pages::compressible(3000);
  Owner owner(pages.puts);
  std::size_t stored = 0;
  for (std::size_t at = 0; at < pages.puts.size(); at += 100) {
    const StoreStatus status = tier.put(std::span(pages.puts).subspan(at, 100));
    ASSERT_TRUE(status == StoreStatus::ok || status == StoreStatus::full) << to_string(status);
    tier.maintain(owner);
  }
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    if (pages.puts[i].status == StoreStatus::ok) {
      ++stored;
      ASSERT_EQ(pages.fetch(tier, i), StoreStatus::ok);
      ASSERT_TRUE(pages.same);
    }
  }
  EXPECT_GT(stored, 700U);
  EXPECT_LT(stored, 3000U);
}

}  // namespace
}  // namespace fileballoon
