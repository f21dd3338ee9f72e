// The arbiter's promises: what an operator configured (minimums, bands, weights, mem-set) holds
// whatever guests do or claim, and a guest that needs memory gets it as soon as anybody has it.
#include "fileballoon/arbiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <random>

#include "fileballoon/arbiter_invariants.h"

namespace fileballoon {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

/// A host with some memory and VMs that do what the test says; time passes a second a tick.
class World {
 public:
  explicit World(Bytes memory, ArbiterConfig config = {}) : arbiter(config), memory_(memory) {}

  struct Guest {
    VmId id;
    VmSettings settings;
    Bytes footprint;
    Bytes active;
    Bytes deflated;
    Bytes paged{};       ///< of `active`, in a store; what is touched of it comes back by the test
    Bytes asked_back{};  ///< since the last tick
    Bytes footprint_at_tick{};  ///< as reported last
    bool gives = true;  ///< follows its target as far as its active memory allows, within a tick
    bool obeys = true;  ///< … and may be squeezed into its active memory (it has swap of its own)
  };

  std::size_t add(VmSettings settings, Bytes active, Bytes footprint) {
    if (settings.ceiling == Bytes(0)) {
      settings.ceiling = settings.ram;
    }
    settings = make_vm_settings(settings).value();
    guests.push_back({arbiter.add(settings), settings, footprint, active, Bytes(0)});
    return guests.size() - 1;
  }
  /// A VM with 4 GiB of RAM.
  std::size_t add(unsigned band, Bytes active, Bytes footprint, std::uint32_t weight = 100) {
    return add({.ram = Bytes::gib(4),
                .minimum = Bytes::mib(256),
                .ceiling = {},
                .band = band,
                .weight = weight},
               active, footprint);
  }

  [[nodiscard]] HostReport host() const {
    Bytes used = other;
    for (const Guest& g : guests) {
      used += g.footprint;
    }
    HostReport report = host_extra;
    report.available = memory_ - used;
    return report;
  }

  void tick(int count = 1) {
    for (; count > 0; --count) {
      for (Guest& g : guests) {
        arbiter.report(g.id, {.footprint = g.footprint,
                              .guest_known = true,
                              .available = g.settings.ram - g.active,
                              .deflated = g.deflated,
                              .idle = std::nullopt,
                              .paged = g.paged,
                              .asked_back = g.asked_back});
        g.deflated = g.asked_back = Bytes(0);
        g.footprint_at_tick = g.footprint;
      }
      now += seconds(1);
      arbiter.tick(host(), now);
      check();
      for (Guest& g : guests) {
        const Bytes target = arbiter.decision(g.id).target;
        if (g.gives && g.footprint > target) {
          g.footprint = g.obeys ? target : std::max(target, std::min(g.active, g.footprint));
        }
      }
    }
  }

  void check() {
    std::vector<ArbitratedVm> vms;
    for (const Guest& g : guests) {
      vms.push_back({g.id, g.settings, g.footprint});
    }
    std::vector<std::string> violations;
    check_invariants(arbiter, vms, violations);
    EXPECT_THAT(violations, testing::IsEmpty()) << arbiter.explain_host();
  }

  [[nodiscard]] Bytes target(std::size_t i) const { return arbiter.decision(guests[i].id).target; }
  [[nodiscard]] VmDecision decision(std::size_t i) const { return arbiter.decision(guests[i].id); }
  [[nodiscard]] std::string words(std::size_t i) const { return arbiter.explain(guests[i].id); }

  Arbiter arbiter;
  std::vector<Guest> guests;
  HostReport host_extra;
  Bytes other;
  Arbiter::Clock::time_point now{seconds(1000)};

 private:
  Bytes memory_;
};

// ------------------------------------------------------------------------------------------ plenty

TEST(Arbiter, NoVmsAreNoTrouble) {
  World w(Bytes::gib(8));
  w.tick(3);
  EXPECT_EQ(w.arbiter.summary().targets, Bytes(0));
  EXPECT_EQ(w.arbiter.summary().changed, 0U);
}

TEST(Arbiter, WithRoomForAllEverybodyMayGrowToItsRam) {
  World w(Bytes::gib(16));
  w.add(0, Bytes::gib(1), Bytes::gib(2));
  w.add(3, Bytes::gib(1), Bytes::gib(2));
  w.tick();
  EXPECT_EQ(w.target(0), Bytes::gib(4)) << w.words(0);
  EXPECT_EQ(w.target(1), Bytes::gib(4)) << w.words(1);
  EXPECT_EQ(w.arbiter.summary().level, PressureLevel::high);
}

TEST(Arbiter, NothingChangesWhileNothingHappens) {
  World w(Bytes::gib(8));
  w.add(0, Bytes::gib(1), Bytes::gib(3));
  w.add(1, Bytes::gib(1), Bytes::gib(3));
  w.add(1, Bytes::gib(2), Bytes::gib(3));
  w.tick(200);
  for (int i = 0; i < 20; ++i) {
    w.tick();
    EXPECT_EQ(w.arbiter.summary().changed, 0U);
  }
}

TEST(Arbiter, TheCeilingOfMemSetHolds) {
  World w(Bytes::gib(16));
  w.add({.ram = Bytes::gib(4), .minimum = Bytes(0), .ceiling = Bytes::gib(1)}, Bytes::gib(3),
        Bytes::gib(3));
  w.tick(30);
  EXPECT_EQ(w.target(0), Bytes::gib(1));
}

// ---------------------------------------------------------------------------------------- scarcity

TEST(Arbiter, IdleMemoryOfALowerBandGoesFirst) {
  World w(Bytes::gib(8));
  const auto high = w.add(0, Bytes::gib(2), Bytes::gib(4));
  const auto low = w.add(1, Bytes::gib(2), Bytes::gib(4));
  w.tick(300);
  EXPECT_EQ(w.guests[high].footprint, Bytes::gib(4)) << w.words(high);
  EXPECT_LT(w.guests[low].footprint, Bytes::mib(3700)) << w.words(low);
  EXPECT_GE(w.guests[low].footprint, Bytes::gib(2)) << "it still has what it uses";
}

TEST(Arbiter, InsideABandTheMostIdleGivesMost) {
  World w(Bytes::gib(10));
  const auto idle = w.add(1, Bytes::mib(512), Bytes::gib(4));
  const auto busy = w.add(1, Bytes::gib(3), Bytes::gib(4));
  w.other = Bytes::gib(3);
  w.tick(300);
  EXPECT_GT(Bytes::gib(4) - w.guests[idle].footprint, Bytes::mib(400));
  EXPECT_GE(w.guests[busy].footprint, Bytes::mib(3300)) << w.words(busy);
  EXPECT_GT(w.guests[busy].footprint, w.guests[idle].footprint);
}

TEST(Arbiter, ALowerBandIsOrderedToItsMinimumBeforeAHigherOneLacks) {
  World w(Bytes::gib(8));
  w.add(0, Bytes::mib(3500), Bytes::gib(4));
  w.add(0, Bytes::mib(3500), Bytes::gib(4));
  const auto low = w.add(5, Bytes::gib(2), Bytes::mib(300));
  w.tick(60);
  EXPECT_EQ(w.target(low), Bytes::mib(256));
  EXPECT_THAT(w.words(low), HasSubstr("minimum of 256 MiB"));
}

TEST(Arbiter, WeightsDivideAShortBand) {
  World w(Bytes::gib(4));
  const auto one = w.add(2, Bytes::mib(3500), Bytes::mib(256), 100);
  const auto three = w.add(2, Bytes::mib(3500), Bytes::mib(256), 300);
  w.tick(60);
  const double a = w.decision(one).goal.as_mib() - 256;
  const double b = w.decision(three).goal.as_mib() - 256;
  EXPECT_NEAR(b / a, 3.0, 0.05) << w.words(one) << "\n" << w.words(three);
}

TEST(Arbiter, WeightZeroGetsItsMinimumUntilTheOthersHaveEnough) {
  World w(Bytes::gib(4));
  const auto none = w.add(2, Bytes::gib(2), Bytes::mib(256), 0);
  const auto some = w.add(2, Bytes::mib(3900), Bytes::mib(256), 1);
  w.tick(60);
  EXPECT_EQ(w.decision(none).goal, Bytes::mib(256));
  w.guests[some].active = Bytes::mib(512);
  w.tick(300);
  EXPECT_GE(w.decision(none).goal, Bytes::gib(2)) << w.words(none);
}

TEST(Arbiter, TheIdleTaxDecidesBetweenIsolationAndUse) {
  const auto goal_of_idle_vm = [](double tax) {
    World w(Bytes::gib(5), make_arbiter_config({.idle_tax = tax}).value());
    const auto idle = w.add(0, Bytes::mib(512), Bytes::gib(4));
    w.add(1, Bytes::gib(4), Bytes::gib(1));
    w.tick(300);
    return w.decision(idle).goal;
  };
  EXPECT_GT(goal_of_idle_vm(0), Bytes::mib(3900)) << "pure isolation: a higher band keeps it all";
  EXPECT_LT(goal_of_idle_vm(1), Bytes::mib(1300)) << "nothing idle while another band needs it";
  EXPECT_GT(goal_of_idle_vm(0.5), goal_of_idle_vm(0.75));
}

TEST(Arbiter, AJobThatHasEndedDoesNotHoldBackThoseThatRun) {
  World w(Bytes::gib(64));
  w.host_extra.limit = Bytes::gib(2);
  for (int i = 0; i < 3; ++i) {
    w.add({.ram = Bytes::gib(1), .minimum = Bytes(0), .ceiling = {}, .band = 0},
          Bytes::mib(i < 2 ? 800 : 100), Bytes::mib(i < 2 ? 800 : 100));
  }
  w.tick(20);
  w.guests[0].active = Bytes::mib(100);  // its job has ended; another begins
  w.guests[2].active = Bytes::mib(800);
  w.tick(3);
  EXPECT_GE(w.target(1), Bytes::mib(850)) << w.words(1);
  EXPECT_GE(w.target(2), Bytes::mib(800)) << w.words(2);
  // With room for all it is still given the minute to come back in.
  w.guests[2].active = Bytes::mib(100);
  w.tick(3);
  EXPECT_GE(w.decision(0).need, Bytes::mib(700));
}

TEST(Arbiter, RaisingWaitsUntilTheMemoryIsThere) {
  World w(Bytes::gib(8));
  const auto high = w.add(0, Bytes::mib(500), Bytes::gib(1));
  const auto low = w.add(1, Bytes::gib(1), Bytes::gib(4));
  const auto low2 = w.add(1, Bytes::mib(500), Bytes::mib(2400));
  w.tick(30);
  w.guests[low].gives = false;
  w.guests[low2].gives = false;
  w.guests[high].active = Bytes::gib(4);
  for (int i = 0; i < 5; ++i) {
    w.tick();
    Bytes committed;
    for (std::size_t g = 0; g < w.guests.size(); ++g) {
      committed += std::max(w.target(g), w.guests[g].footprint);
    }
    EXPECT_LE(committed, w.arbiter.summary().capacity) << "promised what nobody has given";
  }
  EXPECT_LT(w.target(high), Bytes::gib(4));
  EXPECT_THAT(w.words(high), HasSubstr("waiting for others to give"));
  EXPECT_LT(w.target(low), w.guests[low].footprint) << "but they were told";
  w.guests[low].gives = true;
  w.guests[low2].gives = true;
  w.tick(5);
  EXPECT_GE(w.target(high), Bytes::mib(3900)) << w.words(high) << w.arbiter.explain_host();
}

TEST(Arbiter, MemoryComesBackWhenPressureIsGone) {
  World w(Bytes::gib(10));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.tick(20);
  EXPECT_EQ(w.target(vm), Bytes::gib(4));
  w.other = Bytes::gib(7);
  w.tick(120);
  EXPECT_LT(w.target(vm), Bytes::gib(3));
  EXPECT_LT(w.guests[vm].footprint, Bytes::gib(3));
  w.other = Bytes(0);
  w.tick(2);
  EXPECT_LT(w.target(vm), Bytes::gib(4)) << "not before it has been calm for a while";
  w.tick(15);
  EXPECT_EQ(w.target(vm), Bytes::gib(4)) << w.words(vm);
}

TEST(Arbiter, TheConfiguredLimitIsTheHost) {
  World w(Bytes::gib(64));
  w.host_extra.limit = Bytes::gib(2);
  for (int i = 0; i < 3; ++i) {
    w.add({.ram = Bytes::gib(1), .minimum = Bytes::mib(128), .ceiling = {}, .band = 0},
          Bytes::mib(300), Bytes::mib(800));
  }
  w.tick(60);
  EXPECT_EQ(w.arbiter.summary().capacity, Bytes::gib(2));
  Bytes sum;
  for (const auto& g : w.guests) {
    sum += g.footprint;
  }
  EXPECT_LE(sum, Bytes::gib(2));
  EXPECT_GE(sum, Bytes::mib(1800)) << "a limit is to be used, too";
}

TEST(Arbiter, StallsShrinkThePlanThoughMemoryLooksFree) {
  World w(Bytes::gib(10));
  w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.tick(20);
  const Bytes before = w.arbiter.summary().budget;
  w.host_extra.psi_full = 8;
  w.tick(10);
  EXPECT_EQ(w.arbiter.summary().level, PressureLevel::hard);
  EXPECT_LT(w.arbiter.summary().budget, before - Bytes::mib(900));
  w.host_extra.psi_full = 0;
  w.tick(60);
  EXPECT_EQ(w.arbiter.summary().level, PressureLevel::high);
  EXPECT_EQ(w.arbiter.summary().budget, before);
}

// ------------------------------------------------------------------------------- paged-out memory

/// A VM of band 0 that uses 3 GiB and has half of it in a store, beside one of band 1, on 4 GiB.
World half_paged_out() {
  World w(Bytes::gib(64));
  w.host_extra.limit = Bytes::gib(4);
  w.add(0, Bytes::gib(3), Bytes::mib(1536));
  w.guests[0].paged = Bytes::mib(1536);
  w.guests[0].gives = false;
  w.add(1, Bytes::mib(1800), Bytes::mib(2100));
  w.guests[1].obeys = false;
  return w;
}

TEST(Arbiter, PagedOutMemoryThatNobodyAsksBackIsNotLacking) {
  World w = half_paged_out();
  w.tick(60);
  EXPECT_EQ(w.arbiter.summary().lacking.at(0), Bytes(0)) << w.arbiter.explain_host();
  EXPECT_EQ(w.decision(0).need, Bytes::mib(1536)) << "what it holds";
  EXPECT_GE(w.target(1), Bytes::mib(1800)) << w.words(1);
}

TEST(Arbiter, WhatIsAskedBackIsNeededInTheSameTick) {
  World w = half_paged_out();
  w.tick(60);
  // 300 MiB of it come back in a second: as much again may follow.
  w.guests[0].paged = w.guests[0].paged - Bytes::mib(300);
  w.guests[0].footprint += Bytes::mib(300);
  w.guests[0].asked_back = Bytes::mib(300);
  w.tick();
  EXPECT_GE(w.decision(0).need, Bytes::mib(1536 + 600)) << w.words(0);
  EXPECT_LT(w.target(1), Bytes::mib(1800)) << "for a higher band: " << w.words(1);
  w.tick(300);
  EXPECT_LE(w.decision(0).need, Bytes::mib(1840)) << "and no more came";
}

TEST(Arbiter, AGuestThatGrowsWhileItsOldMemoryIsPagedOutNeedsRoom) {
  World w = half_paged_out();
  w.tick(60);
  w.guests[0].active += Bytes::mib(200);  // into memory that it has taken from its own
  w.guests[0].paged += Bytes::mib(200);
  w.tick();
  EXPECT_GE(w.decision(0).need, Bytes::mib(1736)) << w.words(0);
}

TEST(Arbiter, PagedOutMemoryThatIsOutOfUseHidesNothing) {
  // What was paged out has been freed in the guest; it uses other memory, all of it there.
  World w(Bytes::gib(64));
  w.host_extra.limit = Bytes::gib(4);
  w.add(0, Bytes::mib(1400), Bytes::mib(1536));
  w.guests[0].paged = Bytes::mib(1536);
  w.tick(60);
  EXPECT_GE(w.decision(0).need, Bytes::mib(1536)) << w.words(0);
}

TEST(Arbiter, ACeilingBelowWhatAGuestUsesLeavesTheNeedOfWhatItHolds) {
  World w(Bytes::gib(64));
  w.add({.ram = Bytes::gib(4), .minimum = Bytes(0), .ceiling = Bytes::gib(1)}, Bytes::gib(3),
        Bytes::gib(1));
  w.guests[0].paged = Bytes::gib(2);
  w.tick(60);
  EXPECT_EQ(w.decision(0).need, Bytes::gib(1)) << w.words(0);
}

// ------------------------------------------------------------------------------------ fast deflate

TEST(Arbiter, AFastDeflateRaisesTheTargetInTheSameTick) {
  World w(Bytes::gib(8));
  const auto vm = w.add(2, Bytes::gib(1), Bytes::gib(2));
  w.add(1, Bytes::gib(3), Bytes::gib(4));
  w.other = Bytes::mib(1500);
  w.tick(120);
  const Bytes before = w.target(vm);
  w.guests[vm].footprint =
      before + Bytes::mib(100);  // reclaim took balloon pages: no one was asked
  w.guests[vm].deflated = Bytes::mib(100);
  w.tick();
  EXPECT_GE(w.target(vm), before + Bytes::mib(100)) << w.words(vm) << w.arbiter.explain_host();
  EXPECT_THAT(w.words(vm), HasSubstr("took memory back fast"));
}

TEST(Arbiter, AfterAFastDeflateTheTargetIsHeldForAWhile) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(2));
  w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.tick(60);
  w.guests[vm].deflated = Bytes::mib(64);
  w.tick();
  const Bytes raised = w.target(vm);
  for (int i = 0; i < 9; ++i) {
    w.tick();
    EXPECT_GE(w.target(vm), raised) << w.words(vm);
  }
}

TEST(Arbiter, AGuestThatGrowsForLongDoesNotNeedTheSumOfWhatItTook) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::mib(500), Bytes::mib(700));
  for (int i = 0; i < 20; ++i) {
    w.guests[vm].deflated = Bytes::mib(64);
    w.guests[vm].active += Bytes::mib(64);
    w.guests[vm].footprint += Bytes::mib(64);
    w.tick();
  }
  const Bytes used = w.guests[vm].active + Bytes(w.guests[vm].active.count() / 8);
  EXPECT_GE(w.decision(vm).need, used + Bytes::mib(128)) << "as much again within the next second";
  EXPECT_LE(w.decision(vm).need, used + Bytes::mib(256)) << w.words(vm);
}

TEST(Arbiter, ManyTicksWithinASecondSeeTheSameFastDeflate) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(2));
  w.tick(60);
  for (int i = 0; i < 10; ++i) {
    w.arbiter.report(w.guests[vm].id, {.footprint = w.guests[vm].footprint,
                                       .guest_known = true,
                                       .available = Bytes::gib(3),
                                       .deflated = Bytes::mib(6),
                                       .idle = std::nullopt,
                                       .paged = {},
                                       .asked_back = {}});
    w.now += std::chrono::milliseconds(100);
    w.arbiter.tick(w.host(), w.now);
  }
  EXPECT_GE(w.decision(vm).need, Bytes::gib(1) + Bytes::mib(128 + 64)) << w.words(vm);
}

TEST(Arbiter, EverydayReclaimIsNoFastDeflate) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(2));
  w.tick(5);
  w.guests[vm].deflated = Bytes::mib(4);
  w.tick();
  EXPECT_NE(w.decision(vm).reason, TargetReason::fast_deflate);
}

// ----------------------------------------------------------------------------------- bad behaviour

TEST(Arbiter, AGuestThatGivesNothingIsPagedWhereThatIsAllowedAndNeeded) {
  World w(Bytes::gib(8));
  w.add(0, Bytes::gib(3), Bytes::mib(3500));
  const auto mule = w.add({.ram = Bytes::gib(4),
                           .minimum = Bytes::mib(256),
                           .ceiling = {},
                           .band = 1,
                           .weight = 100,
                           .can_page = true},
                          Bytes::gib(1), Bytes::gib(4));
  w.guests[mule].gives = false;
  w.host_extra.limit = Bytes::gib(6);
  w.tick(9);
  EXPECT_EQ(w.decision(mule).by_force, Bytes(0)) << "by will first";
  w.tick(5);
  EXPECT_GT(w.decision(mule).by_force, Bytes::gib(1));
  EXPECT_THAT(w.words(mule), HasSubstr("by paging"));
}

TEST(Arbiter, AGuestThatGivesNothingAndMayNotBePagedIsPlannedAround) {
  World w(Bytes::gib(8));
  const auto needy = w.add(0, Bytes::gib(4), Bytes::gib(1));
  const auto mule = w.add(1, Bytes::gib(1), Bytes::gib(4));
  const auto other = w.add(2, Bytes::gib(1), Bytes::mib(2500));
  w.guests[mule].gives = false;
  w.tick(40);
  EXPECT_EQ(w.decision(mule).reason, TargetReason::stuck_refused) << w.words(mule);
  EXPECT_THAT(w.words(mule), HasSubstr("asked again in"));
  EXPECT_EQ(w.target(other), Bytes::mib(256)) << "a lower band gives what the mule does not";
  EXPECT_GT(w.target(needy), Bytes::mib(2500));
}

TEST(Arbiter, MinimumsThatExceedTheHostAreKeptAndReported) {
  World w(Bytes::gib(4));
  for (int i = 0; i < 3; ++i) {
    w.add({.ram = Bytes::gib(4), .minimum = Bytes::gib(2), .ceiling = {}, .band = 1}, Bytes::gib(1),
          Bytes::gib(1));
  }
  w.tick(20);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(w.target(i), Bytes::gib(2));
  }
  EXPECT_EQ(w.arbiter.summary().shortage, Bytes::gib(2));
  EXPECT_THAT(w.arbiter.explain_host(), HasSubstr("exceed the host by 2 GiB"));
}

TEST(Arbiter, ClockJumpsNeitherForgetNorForgive) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.add(0, Bytes::gib(3), Bytes::gib(4));
  w.tick(60);
  w.guests[vm].gives = false;
  w.other = Bytes::gib(2);
  w.tick(3);
  w.now += std::chrono::hours(24 * 365);
  w.tick();
  EXPECT_NE(w.decision(vm).reason, TargetReason::stuck_refused)
      << "a year in one tick is no year of patience";
  w.now -= std::chrono::hours(24 * 365 * 2);
  w.tick(3);
  w.now = Arbiter::Clock::time_point::min();
  w.tick();
  w.now = Arbiter::Clock::time_point::max() - seconds(10);
  w.tick(3);
}

TEST(Arbiter, LyingReportsAreBounded) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(2));
  const auto other = w.add(1, Bytes::gib(1), Bytes::gib(2));
  w.tick(5);
  constexpr Bytes kHuge{std::numeric_limits<std::uint64_t>::max()};
  for (const bool known : {true, false}) {
    for (const Bytes value : {kHuge, Bytes(0)}) {
      w.arbiter.report(w.guests[vm].id, {value, known, value, value, std::nullopt, value, value});
      w.arbiter.report(w.guests[vm].id, {value, known, value, value, value, value, value});
      w.now += seconds(1);
      w.arbiter.tick(w.host(), w.now);
      w.check();
      EXPECT_GE(w.target(other), Bytes::gib(1));
    }
  }
  w.host_extra.psi_full = std::numeric_limits<double>::quiet_NaN();
  w.host_extra.psi_some = -5;
  w.tick(3);
  EXPECT_EQ(w.arbiter.summary().capacity.count() > 0, true);
}

TEST(Arbiter, AHostWithNothingLeavesMinimums) {
  World w(Bytes(0));
  const auto vm = w.add(1, Bytes::gib(1), Bytes(0));
  w.tick(5);
  EXPECT_EQ(w.target(vm), Bytes::mib(256));
  EXPECT_EQ(w.arbiter.summary().shortage, Bytes::mib(256));
}

TEST(Arbiter, ADryRunChangesNothingAndSaysWhatItWouldDo) {
  World w(Bytes::gib(8));
  const auto vm = w.add(1, Bytes::gib(1), Bytes::gib(4));
  w.tick(20);
  HostReport host = w.host();
  host.available = Bytes(0);
  const Bytes before = w.target(vm);
  const Arbiter::Preview preview = w.arbiter.dry_run(host, w.now + seconds(1));
  EXPECT_EQ(w.target(vm), before);
  ASSERT_EQ(preview.changes.size(), 1U);
  EXPECT_THAT(preview.changes[0].second, HasSubstr("lowered to"));
  EXPECT_THAT(preview.host, HasSubstr("memory low"));
}

TEST(Arbiter, RemovedVmsAreForgottenAndTheirPlacesUsedAgain) {
  World w(Bytes::gib(8));
  w.add(0, Bytes::gib(3), Bytes::gib(4));
  w.add(0, Bytes::gib(3), Bytes::gib(4));
  w.tick(5);
  const VmId old = w.guests[0].id;
  w.arbiter.remove(old);
  w.guests.erase(w.guests.begin());
  w.tick(30);
  EXPECT_EQ(w.target(0), Bytes::gib(4));
  const auto again = w.add(3, Bytes::mib(100), Bytes::mib(100));
  EXPECT_EQ(w.guests[again].id, old);
  EXPECT_THAT(w.words(again), HasSubstr("no target yet"));
  w.tick();
  EXPECT_EQ(w.arbiter.size(), 2U);
}

// ---------------------------------------------------------------------------------------- settings

TEST(VmSettings, RefusalsNameTheNumbers) {
  const VmSettings good{.ram = Bytes::gib(4), .minimum = Bytes::gib(1), .ceiling = Bytes::gib(4)};
  ASSERT_TRUE(make_vm_settings(good).has_value());
  const auto message = [](VmSettings s) {
    const auto r = make_vm_settings(s);
    EXPECT_FALSE(r.has_value());
    return r ? std::string() : r.error().message;
  };
  VmSettings s = good;
  s.ceiling = Bytes::mib(512);
  EXPECT_THAT(message(s), HasSubstr("512 MiB is below the minimum of 1 GiB"));
  s = good;
  s.ceiling = Bytes::gib(5);
  EXPECT_THAT(message(s), HasSubstr("above the guest's RAM of 4 GiB"));
  s = good;
  s.band = kBands;
  EXPECT_THAT(message(s), HasSubstr("band 8 does not exist"));
  s = good;
  s.weight = kMaxWeight + 1;
  EXPECT_THAT(message(s), HasSubstr("weight"));
  EXPECT_THAT(message(VmSettings{}), HasSubstr("without RAM"));
}

TEST(ArbiterConfig, TheTaxIsARate) {
  for (const double bad : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(make_arbiter_config({.idle_tax = bad}).has_value());
  }
}

// -------------------------------------------------------------------------------------------- fill

TEST(Fill, IsMaxMinFairAndGivesAllThereIs) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::size_t n = 1 + random() % 40;
    std::vector<std::uint32_t> members(n);
    std::vector<Pages> cap(n);
    std::vector<Pages> out(n, 0);
    std::vector<double> weight(n);
    std::iota(members.begin(), members.end(), 0);
    for (std::size_t i = 0; i < n; ++i) {
      cap[i] = static_cast<Pages>(random() % 100000);
      weight[i] = static_cast<double>(random() % 4 == 0 ? 0 : 1 + random() % 1000);
    }
    const Pages pool = static_cast<Pages>(random() % 2000000);
    const Pages caps = std::accumulate(cap.begin(), cap.end(), Pages{0});
    const Pages left = fill(members, cap, weight, pool, out);
    const Pages given = std::accumulate(out.begin(), out.end(), Pages{0});
    ASSERT_LE(given, pool);
    if (caps <= pool) {
      EXPECT_EQ(left, pool - caps);
      EXPECT_EQ(out, cap);
      continue;
    }
    EXPECT_EQ(left, 0);
    EXPECT_GE(given, pool - static_cast<Pages>(n)) << "only rounding may be lost";
    double level = 0;  // the highest share for its weight of anyone
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_GE(out[i], 0);
      ASSERT_LE(out[i], cap[i]);
      if (weight[i] > 0) {
        level = std::max(level, (static_cast<double>(out[i]) - 1) / weight[i]);
      }
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (weight[i] > 0 && out[i] < cap[i]) {
        EXPECT_GE(static_cast<double>(out[i]) + 1, level * weight[i])
            << "somebody has more for its weight";
      }
    }
  }
}

// ---------------------------------------------------------------------------------------- property

/// Random hosts with random guests, some of them stubborn or lying, VMs that come and go, settings
/// that change, a clock that jumps: the rules of arbiter_invariants.h hold after every tick.
void random_world(std::uint64_t seed) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto below = [&random](std::uint64_t n) { return n == 0 ? 0 : random() % n; };
  World w(Bytes::gib(1 + below(64)), {.idle_tax = static_cast<double>(below(5)) / 4});
  const auto some_settings = [&] {
    VmSettings s;
    s.ram = Bytes::mib(64 + below(8192));
    s.ceiling = below(4) == 0 ? Bytes(s.ram.count() / (1 + below(3))) : s.ram;
    s.minimum = Bytes(below(s.ceiling.count() / (1 + below(8)) + 1));
    s.band = static_cast<unsigned>(below(kBands));
    s.weight = static_cast<std::uint32_t>(below(6) * 100);
    s.can_page = below(2) == 0;
    return make_vm_settings(s).value();
  };
  for (std::uint64_t n = below(40); n > 0; --n) {
    const VmSettings s = some_settings();
    const auto i = w.add(s, Bytes(below(s.ram.count())), Bytes(below(s.ram.count())));
    w.guests[i].gives = below(5) != 0;
    w.guests[i].obeys = below(2) == 0;
  }
  for (int step = 0; step < 120; ++step) {
    switch (below(12)) {
      case 0:
        w.other = Bytes::mib(below(16384));
        break;
      case 1:
        w.now += seconds(static_cast<std::int64_t>(below(100000)) - 50000);
        break;
      case 2:
        w.host_extra.psi_some = static_cast<double>(below(40));
        w.host_extra.psi_full = static_cast<double>(below(15));
        break;
      case 3:
        w.host_extra.limit = below(2) == 0 ? std::optional(Bytes::mib(below(32768))) : std::nullopt;
        break;
      case 4: {
        const VmSettings s = some_settings();
        (void)w.add(s, Bytes(below(s.ram.count())), Bytes(0));
        break;
      }
      case 5:
        if (!w.guests.empty()) {
          const auto i = static_cast<std::ptrdiff_t>(below(w.guests.size()));
          w.arbiter.remove(w.guests[static_cast<std::size_t>(i)].id);
          w.guests.erase(w.guests.begin() + i);
        }
        break;
      case 6:
        if (!w.guests.empty()) {
          World::Guest& g = w.guests[below(w.guests.size())];
          VmSettings s = some_settings();
          s.ram = g.settings.ram;
          s.ceiling = std::min(s.ceiling, s.ram);
          s.minimum = std::min(s.minimum, s.ceiling);
          g.settings = make_vm_settings(s).value();
          w.arbiter.change(g.id, g.settings);
        }
        break;
      default:
        for (World::Guest& g : w.guests) {
          if (below(4) == 0) {
            g.active = Bytes(below(g.settings.ram.count() + 1));
          }
          // Some of what it uses and does not hold lies in a store, and comes back at times.
          g.asked_back = below(6) == 0 ? Bytes(below(g.paged.count() + 1)) : Bytes(0);
          g.paged =
              below(3) == 0 ? Bytes(0) : Bytes(below((g.settings.ram - g.footprint).count() + 1));
          if (below(8) == 0) {
            const Bytes grown = std::min(g.settings.ram, g.footprint + Bytes::mib(below(512)));
            g.deflated = grown - g.footprint;
            g.footprint = grown;
          }
        }
    }
    w.tick();
    for (const World::Guest& g : w.guests) {
      // Paged-out memory takes nothing from the need of what is there.
      const VmDecision d = w.arbiter.decision(g.id);
      EXPECT_GE(d.need + Bytes(kPageSize), std::clamp(std::min(g.active, g.footprint_at_tick),
                                                      g.settings.minimum, g.settings.ceiling));
    }
    if (testing::Test::HasFailure()) {
      FAIL() << "step " << step;
    }
  }
}

TEST(ArbiterProperty, TheRulesHoldInRandomWorlds) {
  for (std::uint64_t seed = 0; seed < 400 && !HasFailure(); ++seed) {
    random_world(seed);
  }
}

}  // namespace
}  // namespace fileballoon
