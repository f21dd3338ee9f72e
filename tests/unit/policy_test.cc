// How one VM gets to its target: by will before by force, force first to give way, never a timeout
// that nobody had the chance to use, and at every moment a reason that an operator understands.
#include "fileballoon/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace fileballoon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

/// A guest of 1 GiB, all of it touched, that the test moves by hand.
class PolicyTest : public testing::Test {
 protected:
  PolicyTest() {
    input.footprint = Bytes::gib(1);
    input.has_agent = true;
    input.has_pager = true;
  }
  using Clock = TargetPolicy::Clock;
  const PolicyOrder& step(Clock::duration passed = milliseconds(500)) {
    now += passed;
    return policy.step(input, now);
  }
  void step_for(Clock::duration time) {
    for (Clock::duration t{}; t < time; t += milliseconds(500)) {
      (void)step();
    }
  }
  /// Moves memory from the guest into the balloon, or into a store.
  void inflate(Bytes amount) {
    input.balloon_resident += amount;
    input.footprint = input.footprint - amount;
  }
  void page_out(Bytes amount) {
    input.paged += amount;
    input.footprint = input.footprint - amount;
  }
  void target(Bytes footprint) { ASSERT_TRUE(policy.set_target(footprint).has_value()); }

  TargetPolicy policy{Bytes::gib(1)};
  PolicyInput input;
  TargetPolicy::Clock::time_point now{seconds(1000)};
};

TEST_F(PolicyTest, WithoutATargetNothingIsAsked) {
  const PolicyOrder order = step();
  EXPECT_EQ(order.state, PolicyState::no_target);
  EXPECT_EQ(order.balloon_target, Bytes(0));
  EXPECT_EQ(order.paging_target, Bytes(0));
}

TEST_F(PolicyTest, TheBalloonHasTheTimeoutForItselfThenPagingTakesTheRest) {
  target(Bytes::mib(400));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(624));
  EXPECT_EQ(policy.order().paging_target, Bytes(0));
  inflate(Bytes::mib(500));
  step_for(seconds(2));
  EXPECT_EQ(policy.reason(), "waiting for balloon, 3.0 s left");
  step_for(seconds(3));
  EXPECT_EQ(policy.order().state, PolicyState::secondary_working);
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(124));
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(624)) << "the balloon may still do it";
  EXPECT_EQ(policy.reason(), "paging out 124 MiB that the balloon did not take");
  page_out(Bytes::mib(124));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::at_target);
  EXPECT_EQ(policy.reason(), "at target");
}

TEST_F(PolicyTest, WhatTheBalloonTakesLaterIsPagedNoMore) {
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(6));
  page_out(Bytes::mib(624));
  (void)step();
  inflate(Bytes::mib(100));  // the guest gives after all: the footprint is now below the target
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::giving_back);
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(524));
  EXPECT_EQ(policy.reason(), "giving back 100 MiB from paging");
}

TEST_F(PolicyTest, ARaisedTargetTakesFromPagingFirst) {
  target(Bytes::mib(400));
  inflate(Bytes::mib(500));
  page_out(Bytes::mib(124));
  (void)step();
  target(Bytes::mib(450));
  (void)step();
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(74));
  EXPECT_GE(policy.order().balloon_target, Bytes::mib(500)) << "the balloon need not shrink yet";
  target(Bytes::mib(700));
  (void)step();
  EXPECT_EQ(policy.order().paging_target, Bytes(0));
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(324));
  EXPECT_EQ(policy.reason(), "giving back 124 MiB from paging and 176 MiB from the balloon");
}

TEST_F(PolicyTest, PageThenBalloonIsTheMirrorImage) {
  policy.set_policy(MemoryPolicy::page_then_balloon);
  target(Bytes::mib(400));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(624));
  EXPECT_EQ(policy.order().balloon_target, Bytes(0));
  EXPECT_THAT(policy.reason(), HasSubstr("waiting for paging, "));
  page_out(Bytes::mib(600));
  step_for(seconds(6));
  EXPECT_EQ(policy.order().state, PolicyState::secondary_working);
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(24));
  EXPECT_EQ(policy.reason(), "balloon takes 24 MiB that paging did not");
  inflate(Bytes::mib(24));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::at_target);
  target(Bytes::mib(410));
  (void)step();
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(14)) << "the secondary gives way first";
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(600));
}

TEST_F(PolicyTest, BalloonOnlyNeverPages) {
  policy.set_policy(MemoryPolicy::balloon_only);
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(60));
  EXPECT_EQ(policy.order().state, PolicyState::blocked);
  EXPECT_EQ(policy.order().paging_target, Bytes(0));
  EXPECT_EQ(policy.reason(),
            "624 MiB above target: the guest gives no more, and the policy is balloon-only");
}

TEST_F(PolicyTest, PageOnlyEmptiesTheBalloonAndNeedsNoAgent) {
  policy.set_policy(MemoryPolicy::page_only);
  inflate(Bytes::mib(100));
  input.has_agent = false;
  target(Bytes::mib(400));
  (void)step();
  EXPECT_EQ(policy.order().balloon_target, Bytes(0));
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(524));
  EXPECT_EQ(policy.reason(), "paging out 524 MiB");
}

TEST_F(PolicyTest, AChangeOfPolicyPagesInWhatTheNewOneDoesNotHave) {
  target(Bytes::mib(400));
  page_out(Bytes::mib(300));
  policy.set_policy(MemoryPolicy::balloon_only);
  (void)step();
  EXPECT_EQ(policy.order().paging_target, Bytes(0));
}

// Memory that was never touched costs as much to balloon as any other, and frees nothing.
TEST_F(PolicyTest, RoomThatIsNotUsedIsNotBallooned) {
  input.footprint = Bytes::mib(130);
  input.is_room = true;
  target(Bytes::mib(640));
  EXPECT_EQ(step().balloon_target, Bytes(0));
  EXPECT_EQ(step().state, PolicyState::at_target) << policy.reason();
  input.balloon_resident = Bytes::mib(50);
  EXPECT_EQ(step().balloon_target, Bytes::mib(50)) << "what it has given stays given";
  input.footprint = Bytes::mib(600);
  EXPECT_EQ(step().balloon_target, Bytes::mib(384)) << "it comes close";
  input.footprint = Bytes::mib(700);
  EXPECT_EQ(step().balloon_target, Bytes::mib(384));
  input.footprint = Bytes::mib(130);
  input.is_room = false;
  EXPECT_EQ(step().balloon_target, Bytes::mib(384)) << "an operator's target is a wish";
}

TEST_F(PolicyTest, ClearingTheTargetGivesEverythingBack) {
  target(Bytes::mib(400));
  page_out(Bytes::mib(300));
  inflate(Bytes::mib(100));
  (void)step();
  policy.clear_target();
  (void)step();
  EXPECT_EQ(policy.order().balloon_target, Bytes(0));
  EXPECT_EQ(policy.order().paging_target, Bytes(0));
  EXPECT_EQ(policy.reason(), "no target: paging 300 MiB back in");
}

TEST_F(PolicyTest, SaysWhatIsMissing) {
  target(Bytes::mib(400));
  input.has_agent = false;
  (void)step();
  EXPECT_THAT(policy.reason(), HasSubstr("waiting for an agent in the guest"));
  input.has_pager = false;
  step_for(seconds(6));
  EXPECT_EQ(policy.order().state, PolicyState::blocked);
  EXPECT_EQ(policy.reason(),
            "624 MiB above target: the guest has no agent, and this VM has no pager");
  input.has_agent = true;
  input.has_pager = true;
  input.may_force = false;
  (void)step();
  EXPECT_EQ(policy.reason(),
            "624 MiB above target: the guest gives no more, and paging is not allowed now");
}

TEST_F(PolicyTest, ASmallDifferenceIsAtTarget) {
  target(Bytes::mib(400));
  inflate(Bytes::mib(621));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::at_target);
  page_out(Bytes::mib(5));
  (void)step();
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(5)) << "not worth moving a page for";
}

TEST_F(PolicyTest, AGuestThatTakesMemoryBackPostponesForceButNotForEver) {
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(6));
  page_out(Bytes::mib(200));
  (void)step();
  ASSERT_EQ(policy.order().state, PolicyState::secondary_working);
  int postponed = 0;
  for (int i = 0; i < 20; ++i) {
    input.taken = Bytes::mib(32);
    (void)step();
    if (policy.order().state == PolicyState::primary_working) {
      ++postponed;
      EXPECT_EQ(policy.order().paging_target, Bytes::mib(168)) << "force gives way to the guest";
      input.taken = Bytes(0);
      step_for(seconds(6));
    }
  }
  EXPECT_EQ(postponed, static_cast<int>(TargetPolicy::kMostPostponements));
  EXPECT_EQ(policy.order().state, PolicyState::secondary_working);
}

TEST_F(PolicyTest, ALowerTargetIsANewTask) {
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(6));
  ASSERT_EQ(policy.order().state, PolicyState::secondary_working);
  target(Bytes::mib(300));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
}

TEST_F(PolicyTest, AHigherTargetDoesNotRestartTheTimeout) {
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(3));
  target(Bytes::mib(410));
  step_for(seconds(2));
  (void)step();
  EXPECT_EQ(policy.order().state, PolicyState::secondary_working);
}

TEST_F(PolicyTest, ClockJumpsUseUpNoTimeout) {
  target(Bytes::mib(400));
  (void)step();
  (void)step(std::chrono::hours(10));
  EXPECT_EQ(policy.order().state, PolicyState::primary_working)
      << "the host slept; so did the guest";
  (void)step(-std::chrono::hours(100));
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
  (void)policy.step(input, TargetPolicy::Clock::time_point::min());
  (void)policy.step(input, TargetPolicy::Clock::time_point::max());
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
  for (int i = 0; i < 100; ++i) {
    (void)policy.step(input, TargetPolicy::Clock::time_point::max());
  }
  EXPECT_EQ(policy.order().state, PolicyState::primary_working) << "a clock that stands still";
}

TEST_F(PolicyTest, TheTimeoutCanBeChosen) {
  ASSERT_TRUE(policy.set_timeout(seconds(20)).has_value());
  target(Bytes::mib(400));
  (void)step();
  step_for(seconds(19));
  EXPECT_EQ(policy.order().state, PolicyState::primary_working);
  step_for(seconds(1));
  EXPECT_EQ(policy.order().state, PolicyState::secondary_working);
  for (const auto bad : {seconds(0), seconds(-1), seconds(3601)}) {
    const auto refused = policy.set_timeout(bad);
    ASSERT_FALSE(refused.has_value());
    EXPECT_THAT(refused.error().message, HasSubstr("at most 3600.0 s"));
  }
  EXPECT_EQ(policy.timeout(), seconds(20));
}

TEST_F(PolicyTest, TargetsOutsideTheirRangeAreRefusedAndChangeNothing) {
  ASSERT_TRUE(policy.set_minimum(Bytes::mib(200)).has_value());
  target(Bytes::mib(400));
  const auto message = [](const Result<void>& r) {
    EXPECT_FALSE(r.has_value());
    return r ? std::string() : r.error().message;
  };
  EXPECT_THAT(message(policy.set_target(Bytes::mib(199))),
              HasSubstr("199 MiB is below the VM's minimum of 200 MiB"));
  EXPECT_THAT(message(policy.set_target(Bytes::gib(2))),
              HasSubstr("2 GiB is above the guest's RAM of 1 GiB"));
  EXPECT_THAT(message(policy.set_minimum(Bytes::mib(401))), HasSubstr("raise the target first"));
  EXPECT_THAT(message(policy.set_minimum(Bytes::gib(2))), HasSubstr("above the guest's RAM"));
  EXPECT_EQ(policy.target(), Bytes::mib(400));
  EXPECT_EQ(policy.minimum(), Bytes::mib(200));
}

TEST_F(PolicyTest, AnExternalActorIsOnlyWatched) {
  policy.set_actor({ActorName::Kind::external, "/usr/bin/pager"});
  target(Bytes::mib(400));
  inflate(Bytes::mib(100));
  page_out(Bytes::mib(50));
  step_for(seconds(20));
  EXPECT_EQ(policy.order().state, PolicyState::watching);
  EXPECT_EQ(policy.order().balloon_target, Bytes::mib(100)) << "as it is";
  EXPECT_EQ(policy.order().paging_target, Bytes::mib(50));
  EXPECT_EQ(policy.reason(), "left to /usr/bin/pager, which is 474 MiB above the target");
}

TEST_F(PolicyTest, ChangesAreAnnouncedOnce) {
  target(Bytes::mib(400));
  EXPECT_TRUE(step().is_changed);
  EXPECT_FALSE(step().is_changed);
  step_for(seconds(5));
  EXPECT_FALSE(step().is_changed);
}

/// Whatever is measured, whatever the policy: orders stay inside RAM, and never below the minimum.
TEST_F(PolicyTest, OrdersNeverExceedTheTask) {
  for (const MemoryPolicy p : {MemoryPolicy::balloon_then_page, MemoryPolicy::balloon_only,
                               MemoryPolicy::page_only, MemoryPolicy::page_then_balloon}) {
    policy.set_policy(p);
    for (unsigned seed = 0; seed < 4000; ++seed) {
      unsigned r = seed * 2654435761U;
      const auto next = [&r] { return (r = r * 1664525U + 1013904223U) >> 8; };
      input.footprint = Bytes::mib(next() % 1025);
      input.balloon_resident = Bytes::mib(next() % 1025);
      input.paged = Bytes::mib(next() % 1025);
      input.taken = Bytes::mib(next() % 64);
      input.has_agent = next() % 2 == 0;
      input.has_pager = next() % 2 == 0;
      input.may_force = next() % 2 == 0;
      const Bytes wanted = Bytes::mib(next() % 1025);
      target(wanted);
      const PolicyOrder order = step(milliseconds(next() % 4000));
      const Bytes all = Bytes::gib(1) - wanted;
      ASSERT_LE(order.balloon_target, std::max(all, input.balloon_resident)) << policy.reason();
      ASSERT_LE(order.paging_target, std::max(all, input.paged)) << policy.reason();
      ASSERT_FALSE(policy.reason().empty());
      if (p == MemoryPolicy::balloon_only) {
        ASSERT_EQ(order.paging_target, Bytes(0));
      }
      if (p == MemoryPolicy::page_only) {
        ASSERT_EQ(order.balloon_target, Bytes(0));
      }
      if (!input.may_force) {
        ASSERT_LE(order.paging_target, input.paged) << "paged without leave: " << policy.reason();
      }
    }
  }
}

// ------------------------------------------------------------------------------------------- names

TEST(PolicyNames, AreThoseOfTheCommandLine) {
  for (const MemoryPolicy p : {MemoryPolicy::balloon_then_page, MemoryPolicy::balloon_only,
                               MemoryPolicy::page_only, MemoryPolicy::page_then_balloon}) {
    EXPECT_EQ(parse_policy(to_string(p)).value(), p);
  }
  for (const char* text : {"", "balloon", "Balloon-only", "page-then-page", " balloon-only"}) {
    const auto refused = parse_policy(text);
    ASSERT_FALSE(refused.has_value()) << text;
    EXPECT_THAT(refused.error().message,
                HasSubstr("balloon-then-page, balloon-only, page-only, page-then-balloon"));
  }
}

TEST(ActorNames, RegisteredNamesAndExternalPaths) {
  constexpr std::string_view kRegistered[] = {kDefaultActor, "other"};
  EXPECT_EQ(parse_actor("other", kRegistered).value(),
            (ActorName{ActorName::Kind::builtin, "other"}));
  const ActorName external = parse_actor("external:/opt/a b/pager", kRegistered).value();
  EXPECT_EQ(external, (ActorName{ActorName::Kind::external, "/opt/a b/pager"}));
  EXPECT_EQ(to_string(external), "external:/opt/a b/pager");
}

TEST(ActorNames, RefusalsSayWhichRuleWasBroken) {
  constexpr std::string_view kRegistered[] = {kDefaultActor};
  const auto message = [&](std::string_view text) {
    const auto r = parse_actor(text, kRegistered);
    EXPECT_FALSE(r.has_value()) << text;
    return r ? std::string() : r.error().message;
  };
  EXPECT_THAT(message("nobody"), HasSubstr("unknown actor 'nobody'; choose fileballoon, or"));
  EXPECT_THAT(message(""), HasSubstr("unknown actor"));
  EXPECT_THAT(message("external:"), HasSubstr("missing"));
  EXPECT_THAT(message("external:bin/pager"), HasSubstr("absolute"));
  EXPECT_THAT(message("external:/bin/"), HasSubstr("folder"));
  EXPECT_THAT(message("external:/"), HasSubstr("folder"));
  EXPECT_THAT(message("external:/bin/../etc/x"), HasSubstr("'..'"));
  EXPECT_THAT(message("external:/bin/./x"), HasSubstr("'.'"));
  EXPECT_THAT(message("external:/.."), HasSubstr("'..'"));
  EXPECT_THAT(message(std::string_view("external:/a\0b", 13)), HasSubstr("control"));
  EXPECT_THAT(message("external:/a\nb"), HasSubstr("'external:/a?b'"));
  EXPECT_THAT(message("external:/" + std::string(5000, 'x')), HasSubstr("longer"));
}

}  // namespace
}  // namespace fileballoon
