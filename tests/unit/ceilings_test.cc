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

}  // namespace
}  // namespace fileballoon
