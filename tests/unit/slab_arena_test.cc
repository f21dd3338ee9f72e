// The memory of the compressed store: two objects in one place are two pages of a guest lost.
#include "uffd/pager/slab_arena.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "uffd/pager/pagemap.h"

namespace fileballoon {
namespace {

TEST(SlabArena, ObjectsOfOneSlabDoNotOverlap) {
  SlabArena arena(Bytes::mib(8));
  std::mt19937_64 random(4);
  std::vector<std::pair<ObjectId, std::size_t>> live;
  for (int i = 0; i < 30000; ++i) {
    if (live.size() < 1500 || random() % 2 == 0) {
      const std::size_t size = 1 + random() % SlabArena::kMaxObject;
      const auto object = arena.allocate(size);
      if (object) {
        ASSERT_GE(arena.capacity(*object), size);
        std::memset(arena.data(*object), static_cast<int>(object->value & 0xFF), size);
        live.emplace_back(*object, size);
        continue;
      }
    }
    const std::size_t pick = random() % live.size();
    const auto [object, size] = live[pick];
    const auto expected = static_cast<std::byte>(object.value & 0xFF);
    ASSERT_EQ(arena.data(object)[0], expected);
    ASSERT_EQ(arena.data(object)[size - 1], expected);
    arena.free(object);
    ASSERT_FALSE(arena.is_live(object));
    live[pick] = live.back();
    live.pop_back();
  }
}

// An arena so large that it takes huge pages, filled and emptied in several ways.
class LargeArena : public ::testing::Test {
 protected:
  struct Object {
    ObjectId id;
    std::size_t size;
  };
  static constexpr Bytes kLimit = Bytes::mib(96);

  /// Objects of up to `bytes` in total.
  void fill(Bytes bytes) {
    while (live_bytes_ < bytes.count()) {
      const std::size_t size = 600 + random_() % 1800;
      const auto id = arena_.allocate(size);
      ASSERT_TRUE(id);
      std::memset(arena_.data(*id), static_cast<int>(id->value & 0xFF), size);
      live_.push_back({*id, size});
      live_bytes_ += size;
    }
  }
  /// Frees those that `goes` says, after a look at what they hold.
  template <class Goes>
  void free_some(Goes&& goes) {
    std::vector<Object> stay;
    for (const Object& object : live_) {
      const auto expected = static_cast<std::byte>(object.id.value & 0xFF);
      ASSERT_EQ(arena_.data(object.id)[0], expected);
      ASSERT_EQ(arena_.data(object.id)[object.size - 1], expected);
      if (goes(object)) {
        arena_.free(object.id);
        live_bytes_ -= object.size;
      } else {
        stay.push_back(object);
      }
    }
    live_ = std::move(stay);
  }
  /// Slabs that hold something.
  Bytes used() const {
    std::set<std::uint32_t> slabs;
    for (const Object& object : live_) {
      slabs.insert(object.id.slab());
    }
    return Bytes(slabs.size() * SlabArena::kSlabSize);
  }
  /// What the kernel says that lies behind the arena.
  Bytes resident() const {
    Bytes sum;
    const AddressRange all{reinterpret_cast<std::uintptr_t>(start_), kLimit};
    EXPECT_TRUE(
        Pagemap::open(::getpid())
            .value()
            .scan(all, Pagemap::Want::present, [&](AddressRange range) { sum += range.size; }));
    return sum;
  }

  SlabArena arena_{kLimit};
  std::mt19937_64 random_{7};
  std::vector<Object> live_;
  std::uint64_t live_bytes_ = 0;
  const std::byte* start_ = [this] {
    const ObjectId first = *arena_.allocate(64);  // of the first slab, for the arena's start
    const std::byte* at = arena_.data(first);
    arena_.free(first);
    return at;
  }();
};

TEST_F(LargeArena, CountsWhatItTakes) {
  fill(Bytes::mib(60));
  EXPECT_EQ(resident(), arena_.memory());
  EXPECT_LE(arena_.memory(), used() + Bytes::mib(2)) << "a block at most";
}

TEST_F(LargeArena, ReturnsEmptyBlocksWholeAndTakesThemAgain) {
  for (int round = 0; round < 3; ++round) {
    fill(Bytes::mib(60));
    free_some([](const Object&) { return true; });
    arena_.trim();
    EXPECT_EQ(arena_.memory(), Bytes(0));
    EXPECT_EQ(resident(), Bytes(0));
  }
}

TEST_F(LargeArena, KeepsALittleOfHugePagesThatAreInUse) {
  fill(Bytes::mib(60));
  // Every other slab, so that no block is empty.
  free_some([](const Object& object) { return object.id.slab() % 2 == 0; });
  arena_.trim();
  EXPECT_EQ(resident(), arena_.memory());
  EXPECT_LE(arena_.memory(), used() + Bytes(used().count() / 16) + Bytes::mib(2));
  // The rest, in an order of its own, and new objects in between.
  for (std::uint32_t part = 0; part < 8; ++part) {
    free_some([&](const Object& object) { return object.id.slab() / 2 % 8 == part; });
    fill(Bytes::mib(part < 4 ? 40 : 10));
    arena_.trim();
    EXPECT_EQ(resident(), arena_.memory());
  }
  free_some([](const Object&) { return true; });
  arena_.trim();
  EXPECT_EQ(arena_.memory(), Bytes(0));
}

TEST_F(LargeArena, TakesAllThatItMay) {
  std::uint64_t bytes = 0;
  while (const auto id = arena_.allocate(SlabArena::kMaxObject)) {
    live_.push_back({*id, 1});
    *arena_.data(*id) = static_cast<std::byte>(id->value & 0xFF);
    bytes += arena_.capacity(*id);
  }
  EXPECT_GT(bytes, kLimit.count() / 100 * 98);
  EXPECT_EQ(arena_.memory(), arena_.limit());
  free_some([](const Object&) { return true; });
}

}  // namespace
}  // namespace fileballoon
