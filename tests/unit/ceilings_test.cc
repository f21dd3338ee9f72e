// Ceilings: were their sum ever above what the host has, guests that fill their memory in the same
// second would take it out of memory.
#include "fileballoon/ceilings.h"

#include <gtest/gtest.h>

#include <random>

namespace fileballoon {
namespace {

Bytes sum_of(const std::vector<Bytes>& values) {
  Bytes sum;
  for (const Bytes value : values) {
    sum += value;
  }
  return sum;
}

TEST(Ceilings, WithRoomForAllNobodyIsHeldBack) {
  const std::vector<CeilingInput> vms(3, {Bytes::gib(1), Bytes::gib(1), Bytes::mib(300)});
  for (const Bytes ceiling : ceilings(vms, Bytes::gib(4))) {
    EXPECT_EQ(ceiling, Bytes::gib(1));
  }
}

TEST(Ceilings, WhatIsLeftIsDividedEvenlyAndNothingTwice) {
  const std::vector<CeilingInput> vms{{Bytes::gib(1), Bytes::mib(800), Bytes::mib(700)},
                                      {Bytes::gib(1), Bytes::mib(500), Bytes::mib(600)},
                                      {Bytes::gib(1), Bytes::mib(300), Bytes::mib(300)}};
  const auto result = ceilings(vms, Bytes::gib(2));
  const Bytes part = Bytes::mib(2048 - 800 - 600 - 300).page_floor();
  EXPECT_EQ(result[0], Bytes::mib(800) + Bytes(part.count() / 3).page_floor());
  EXPECT_EQ(result[1], Bytes::mib(600) + Bytes(part.count() / 3).page_floor());
  EXPECT_LE(sum_of(result), Bytes::gib(2));
  EXPECT_GE(sum_of(result) + Bytes::pages(3), Bytes::gib(2)) << "memory lies idle";
}

TEST(Ceilings, AVmAboveItsTargetMayNotGrowWhileTheHostIsFull) {
  const std::vector<CeilingInput> vms{{Bytes::gib(1), Bytes::mib(600), Bytes::mib(1000)},
                                      {Bytes::gib(1), Bytes::mib(600), Bytes::mib(400)}};
  const auto result = ceilings(vms, Bytes::mib(1300));
  EXPECT_EQ(result[0], Bytes::mib(1000));
  EXPECT_EQ(result[1], Bytes::mib(400)) << "its target is promised, and not there yet";
}

TEST(Ceilings, NeverAddUpToMoreThanThereIs) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<CeilingInput> vms(random() % 12);
    Bytes held;
    for (CeilingInput& vm : vms) {
      vm.ram = Bytes(random() % (std::uint64_t{4} << 30));
      vm.target = Bytes(random() % (vm.ram.count() + 1));
      vm.footprint = Bytes(random() % (vm.ram.count() + 1));
      held += vm.footprint;
    }
    const Bytes capacity(random() % (std::uint64_t{16} << 30));
    const auto result = ceilings(vms, capacity);
    ASSERT_EQ(result.size(), vms.size());
    EXPECT_LE(sum_of(result), std::max(capacity, held));
    for (std::size_t i = 0; i < vms.size(); ++i) {
      EXPECT_LE(result[i], vms[i].ram);
      EXPECT_GE(result[i] + Bytes(kPageSize), vms[i].footprint) << "below what it has already";
    }
  }
}

TEST(NextCeilings, AVmWithoutAKeeperGetsNoneAndKeepsItsPromise) {
  const std::vector<CeilingState> vms{
      {{Bytes::gib(1), Bytes::mib(600), Bytes::mib(200)}, false, {}},
      {{Bytes::gib(1), Bytes::mib(300), Bytes::mib(300)}, true, {}}};
  const auto next = next_ceilings(vms, Bytes::gib(1));
  EXPECT_FALSE(next[0]);
  EXPECT_EQ(next[1], Bytes::mib(1024 - 600));
}

TEST(NextCeilings, NobodyIsRaisedBeforeAnothersLowerCeilingIsConfirmed) {
  std::vector<CeilingState> vms{
      {{Bytes::gib(1), Bytes::mib(200), Bytes::mib(300)}, true, Bytes::mib(700)},
      {{Bytes::gib(1), Bytes::mib(700), Bytes::mib(300)}, true, Bytes::mib(300)}};
  auto next = next_ceilings(vms, Bytes::gib(1));
  EXPECT_EQ(next[0], Bytes::mib(312)) << "lowering need not wait";
  EXPECT_EQ(next[1], Bytes::mib(324)) << "the other one may still grow to 700 MiB";
  vms[0].in_force = next[0];
  vms[1].in_force = next[1];
  next = next_ceilings(vms, Bytes::gib(1));
  EXPECT_EQ(next[1], Bytes::mib(712));
}

// The wall itself: whatever guests do at whatever moment, and however late an order arrives, they
// never have more together than there is. Prints its seed.
TEST(NextCeilings, GuestsNeverTakeMoreThanThereIsHoweverLateOrdersArrive) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto up_to = [&](Bytes most) {
      return Bytes(random() % (most.count() + 1)).page_floor();
    };
    const Bytes capacity = Bytes::gib(2);
    struct Guest {
      CeilingState state;
      std::optional<Bytes> kept;     // by its keeper
      std::optional<Bytes> ordered;  // on its way
    };
    std::vector<Guest> guests(1 + random() % 5);
    Bytes unheld = capacity;  // before the first ceiling is there nobody is held
    for (Guest& guest : guests) {
      guest.state.can_hold = true;
      guest.state.vm.ram = Bytes::gib(1);
      guest.state.vm.footprint = up_to(Bytes(unheld.count() / 4));
      unheld = unheld - guest.state.vm.footprint;
    }
    for (int tick = 0; tick < 50; ++tick) {
      std::vector<CeilingState> states;
      for (Guest& guest : guests) {
        guest.state.vm.target = up_to(Bytes::gib(1));
        guest.state.in_force = guest.kept;
        if (guest.ordered && guest.kept) {
          guest.state.in_force = std::max(*guest.kept, *guest.ordered);
        }
        states.push_back(guest.state);
      }
      const auto next = next_ceilings(states, capacity);
      for (std::size_t i = 0; i < guests.size(); ++i) {
        Guest& guest = guests[i];
        if (!guest.ordered) {
          guest.ordered = next[i];
        }
        if (tick == 0 || random() % 2 == 0) {  // it arrives; a newer one is not sent before
          guest.kept = std::exchange(guest.ordered, std::nullopt);
        }
      }
      Bytes sum;
      for (Guest& guest : guests) {
        Bytes& footprint = guest.state.vm.footprint;
        const int mood = static_cast<int>(random() % 3);
        if (mood == 0) {
          footprint = std::max(footprint, *guest.kept);  // all that it may
        } else if (mood == 1) {
          footprint = up_to(footprint);
        }
        sum += footprint;
      }
      ASSERT_LE(sum, capacity) << "in tick " << tick;
    }
  }
}

}  // namespace
}  // namespace fileballoon
