// The small structures under the stores: a wrong slot is another page's content in a guest.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "uffd/pager/slot_runs.h"
#include "uffd/pager/slot_table.h"

namespace fileballoon {
namespace {

TEST(SlotTable, AgreesWithAMapAcrossRandomChanges) {
  constexpr std::uint32_t kPages = 3000;
  SlotTable table(kPages);
  std::map<std::uint32_t, std::uint32_t> model;
  std::mt19937_64 random(3);
  for (int i = 0; i < 100000; ++i) {
    const auto page = static_cast<std::uint32_t>(random() % kPages);
    if (random() % 2 == 0) {
      const auto slot = static_cast<std::uint32_t>(random() >> 33);
      table.set(PageKey{page}, Slot{slot});
      model[page] = slot;
    } else if (model.erase(page) > 0) {
      table.erase(PageKey{page});
    }
  }
  for (std::uint32_t page = 0; page < kPages; ++page) {
    const auto it = model.find(page);
    ASSERT_EQ(table.find(PageKey{page}).value, it == model.end() ? Slot::kNone : it->second);
  }
}

TEST(SlotTable, StaysWithinItsMemoryBounds) {
  constexpr std::uint64_t kPages = 1 << 18;  // 1 GiB of RAM
  SlotTable table(kPages);
  EXPECT_LE(table.memory().count(), kPages / 4);
  for (std::uint32_t page = 0; page < kPages; ++page) {
    table.set(PageKey{page}, Slot{page});
  }
  EXPECT_LE(table.memory().count(), kPages * 5);
  for (std::uint32_t page = 0; page < kPages; ++page) {
    table.erase(PageKey{page});
  }
  EXPECT_LE(table.memory().count(), kPages / 4);
  // The worst case: one page of each group of 64.
  for (std::uint32_t page = 0; page < kPages; page += 64) {
    table.set(PageKey{page}, Slot{page});
  }
  EXPECT_LE(table.memory().count(), kPages * 3 / 4);
}

TEST(SlotRuns, TakesOneRunWhereThereIsOne) {
  SlotRuns slots(1000);
  std::vector<SlotRun> runs;
  EXPECT_EQ(slots.take(100, runs), 100U);
  EXPECT_EQ(slots.take(100, runs), 100U);
  ASSERT_EQ(runs.size(), 2U);
  EXPECT_EQ(runs[0], (SlotRun{0, 100}));
  EXPECT_EQ(runs[1], (SlotRun{100, 100}));
}

TEST(SlotRuns, PrefersAWholeRunToHolesBeforeIt) {
  SlotRuns slots(1000);
  std::vector<SlotRun> runs;
  ASSERT_EQ(slots.take(1000, runs), 1000U);
  for (std::uint32_t slot = 0; slot < 200; slot += 2) {
    slots.give_back(slot);
  }
  for (std::uint32_t slot = 500; slot < 550; ++slot) {
    slots.give_back(slot);
  }
  runs.clear();
  EXPECT_EQ(slots.take(50, runs), 50U);
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0], (SlotRun{500, 50}));
}

TEST(SlotRuns, NeverGivesASlotTwiceAndFindsEveryFreeOne) {
  constexpr std::uint32_t kSlots = 5003;
  SlotRuns slots(kSlots);
  std::vector<bool> model(kSlots, false);
  std::mt19937_64 random(8);
  std::vector<SlotRun> runs;
  std::uint32_t taken = 0;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 3 != 0) {
      runs.clear();
      const auto want = static_cast<std::uint32_t>(1 + random() % 70);
      const std::uint32_t got = slots.take(want, runs);
      ASSERT_EQ(got, std::min(want, kSlots - taken));
      std::uint32_t sum = 0;
      for (const SlotRun& run : runs) {
        sum += run.count;
        for (std::uint32_t s = run.first; s < run.first + run.count; ++s) {
          ASSERT_LT(s, kSlots);
          ASSERT_FALSE(model[s]);
          model[s] = true;
        }
      }
      ASSERT_EQ(sum, got);
      taken += got;
    } else {
      for (int j = 0; j < 60; ++j) {
        const auto slot = static_cast<std::uint32_t>(random() % kSlots);
        if (model[slot]) {
          slots.give_back(slot);
          model[slot] = false;
          --taken;
        }
      }
    }
    ASSERT_EQ(slots.taken(), taken);
  }
}

}  // namespace
}  // namespace fileballoon
