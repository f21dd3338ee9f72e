// The compressed store: a page that does not come back exactly as it went in is a guest's memory
// corrupted; a store that outgrows its limit takes the memory that paging was to save.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/unit/store_pages.h"
#include "uffd/pager/compressed_store.h"

namespace fileballoon {
namespace {

using testing::Owner;
using testing::Pages;

class CompressedStoreEach : public ::testing::TestWithParam<Compression> {};
INSTANTIATE_TEST_SUITE_P(Codec, CompressedStoreEach,
                         ::testing::Values(Compression::lz4, Compression::zstd),
                         [](const auto& info) { return std::string(to_string(info.param)); });

TEST_P(CompressedStoreEach, PagesComeBackAsTheyWere) {
  CompressedStore store({Bytes::mib(16), GetParam()});
  Pages pages = Pages::compressible(1000);
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  EXPECT_EQ(store.stats().pages, 1000U);
  EXPECT_LT(store.stats().payload.count() * 5 / 2, Bytes::pages(1000).count());
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    ASSERT_EQ(pages.fetch(store, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same) << i;
  }
  for (const PagePut& put : pages.puts) {
    store.free(put.slot);
  }
  Owner owner(pages.puts);
  store.maintain(owner);
  EXPECT_EQ(store.stats().pages, 0U);
  EXPECT_EQ(store.stats().payload.count(), 0U);
  EXPECT_EQ(store.stats().memory.count(), 0U) << "freed slabs were not returned";
}

TEST_P(CompressedStoreEach, DamageAnywhereIsNoticed) {
  CompressedStore store({Bytes::mib(1), GetParam()});
  Pages pages = Pages::compressible(1);
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  const std::span<std::byte> raw = store.raw(pages.puts[0].slot);
  for (std::size_t at = 0; at < raw.size(); ++at) {
    raw[at] ^= std::byte{0x10};
    ASSERT_EQ(pages.fetch(store, 0), StoreStatus::corrupt) << "byte " << at;
    raw[at] ^= std::byte{0x10};
  }
  EXPECT_EQ(pages.fetch(store, 0), StoreStatus::ok);
}

TEST(CompressedStore, AnotherPagesSlotIsRefused) {
  CompressedStore store({Bytes::mib(1)});
  Pages pages = Pages::compressible(2);
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  std::swap(pages.puts[0].slot, pages.puts[1].slot);
  EXPECT_EQ(pages.fetch(store, 0), StoreStatus::corrupt);
  pages.puts[0].slot = Slot{123456};  // never given out
  EXPECT_EQ(pages.fetch(store, 0), StoreStatus::corrupt);
  pages.puts[0].slot = Slot{Slot::kNone >> 1};
  EXPECT_EQ(pages.fetch(store, 0), StoreStatus::corrupt);
}

TEST(CompressedStore, SameFilledPagesTakeNoContentMemory) {
  CompressedStore store({Bytes::mib(1)});
  Pages pages(5000);
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    fill_page(pages.buffer.page(i), 0xCC00 + i % 7);
  }
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  EXPECT_EQ(store.stats().same_filled_pages, 5000U);
  EXPECT_EQ(store.stats().memory.count(), 0U);
  for (std::size_t i = 0; i < pages.puts.size(); i += 97) {
    ASSERT_EQ(pages.fetch(store, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same);
  }
}

TEST(CompressedStore, ManyDistinctWordsFallBackToCompression) {
  CompressedStore store({Bytes::mib(4)});
  Pages pages(6000);  // more words than WordTable::kCapacity
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    fill_page(pages.buffer.page(i), 0x123456789ABCULL * (i + 1));
  }
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  EXPECT_LE(store.stats().same_filled_pages, WordTable::kCapacity);
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    ASSERT_EQ(pages.fetch(store, i), StoreStatus::ok);
    ASSERT_TRUE(pages.same);
  }
}

TEST(CompressedStore, NoiseIsRejected) {
  CompressedStore store({Bytes::mib(1)});
  Pages pages = Pages::random(3);
  testing::fill_compressible(pages.buffer.page(1), 9);
  EXPECT_EQ(store.put(pages.puts), StoreStatus::rejected);
  EXPECT_EQ(pages.puts[0].status, StoreStatus::rejected);
  EXPECT_EQ(pages.puts[1].status, StoreStatus::ok) << "one bad page must not stop the others";
  EXPECT_EQ(pages.puts[2].status, StoreStatus::rejected);
}

TEST(CompressedStore, NeverOutgrowsItsLimit) {
  CompressedStore store({Bytes::mib(1)});
  Pages pages = Pages::compressible(2000);
  EXPECT_EQ(store.put(pages.puts), StoreStatus::full);
  EXPECT_LE(store.stats().memory, Bytes::mib(1));
  std::size_t stored = 0;
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    if (pages.puts[i].status == StoreStatus::ok) {
      ++stored;
      ASSERT_EQ(pages.fetch(store, i), StoreStatus::ok);
      ASSERT_TRUE(pages.same);
    }
  }
  EXPECT_GT(stored, 500U);  // 1 MiB holds about 700 pages at 3:1
  EXPECT_LT(stored, 2000U);
}

TEST(CompressedStore, WasteStaysBoundedAfterRandomFrees) {
  CompressedStore store({Bytes::mib(64)});
  Pages pages = Pages::compressible(20000);
  ASSERT_EQ(store.put(pages.puts), StoreStatus::ok);
  std::mt19937_64 random(5);
  std::vector<bool> kept(pages.puts.size(), true);
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    if (random() % 10 != 0) {
      kept[i] = false;
      store.free(pages.puts[i].slot);
      pages.puts[i].slot = Slot{};
    }
  }
  const Bytes before = store.stats().memory;
  Owner owner(pages.puts);
  for (int i = 0; i < 100; ++i) {
    store.maintain(owner);
  }
  const StoreStats after = store.stats();
  EXPECT_LT(after.memory.count() * 3, before.count());
  // Class steps, slab ends, 1/8 of free room, and a few open slabs for each of about 30 classes.
  EXPECT_LT(after.memory.count(), after.payload.count() * 5 / 4 + 60 * SlabArena::kSlabSize * 3);
  for (std::size_t i = 0; i < pages.puts.size(); ++i) {
    if (kept[i]) {
      ASSERT_EQ(pages.fetch(store, i), StoreStatus::ok);
      ASSERT_TRUE(pages.same);
    }
  }
}

// Readers that free what they have read (page-in) against a thread that stores and compacts.
TEST(CompressedStore, PageInRunsBesidePageOut) {
  CompressedStore store({Bytes::mib(16)});
  constexpr std::size_t kPages = 2000;
  Pages pages = Pages::compressible(kPages);
  std::vector<PagePut> current(kPages);
  std::vector<std::mutex> locks(16);
  struct LockedOwner final : SlotOwner {
    std::vector<PagePut>& current;
    std::vector<std::mutex>& locks;
    LockedOwner(std::vector<PagePut>& c, std::vector<std::mutex>& l) : current(c), locks(l) {}
    bool with(PageKey key, Slot slot, const std::function<Slot()>& move) override {
      const std::lock_guard guard(locks[key.index % locks.size()]);
      if (current[key.index].slot != slot) {
        return false;
      }
      current[key.index].slot = move();
      return true;
    }
  } owner(current, locks);

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> read{0};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&, reader] {
      PageBuffer back(1);
      std::mt19937_64 random(static_cast<std::uint64_t>(reader));
      while (!stop) {
        const std::size_t i = random() % kPages;
        const std::lock_guard guard(locks[i % locks.size()]);
        if (!current[i].slot.valid()) {
          continue;
        }
        const bool good =
            get_page(store, pages.puts[i].key, current[i].slot, back.page(0)) == StoreStatus::ok &&
            std::memcmp(back.page(0), pages.puts[i].data, kPageSize) == 0;
        wrong += good ? 0 : 1;
        store.free(current[i].slot);
        current[i].slot = Slot{};
        ++read;
      }
    });
  }
  for (int round = 0; round < 300; ++round) {
    const std::size_t first = static_cast<std::size_t>(round) * 64 % (kPages - 64);
    for (std::size_t i = first; i < first + 64; ++i) {
      {
        const std::lock_guard guard(locks[i % locks.size()]);
        if (current[i].slot.valid()) {
          continue;
        }
      }
      PagePut put = pages.puts[i];
      ASSERT_EQ(store.put({&put, 1}), StoreStatus::ok);
      const std::lock_guard guard(locks[i % locks.size()]);
      current[i].slot = put.slot;
    }
    store.maintain(owner);
  }
  stop = true;
  for (std::thread& reader : readers) {
    reader.join();
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(read, 100U);
}

TEST(Compression, UnknownNameIsRefused) {
  EXPECT_EQ(parse_compression("zstd").value(), Compression::zstd);
  const auto wrong = parse_compression("gzip");
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.error().message.find("gzip"), std::string::npos);
  EXPECT_NE(wrong.error().message.find("lz4 or zstd"), std::string::npos);
}

}  // namespace
}  // namespace fileballoon
