// The main job in a real guest: the host gets memory back, the guest takes it again when it needs
// it, and nothing is lost on the way.

#include <gtest/gtest.h>

#include <thread>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using vmkit::Agent;

class Balloon : public VmTest {};

// Lost otherwise: the host gets nothing back, or pays for it first.
TEST_F(Balloon, InflatingLowersTheFootprint) {
  boot_with_balloon();
  touch_free_memory();
  const Bytes target = Bytes::mib(500);
  const Bytes before = vm().footprint().now();
  vmkit::FootprintSampler sampler(vm().footprint());
  daemon().set_target(kName, target);
  ASSERT_TRUE(wait_inflated(target));
  sampler.stop();
  const Bytes after = vm().footprint().now();
  EXPECT_LE(sampler.peak(), before + Bytes::mib(16));
  EXPECT_GE((before - after).as_mib(), 0.95 * target.as_mib());
  EXPECT_EQ(vm().oom_kills(), 0U);
  // The four numbers stay apart, and the daemon's footprint is the backing's own.
  const auto stats = daemon().stats(kName);
  EXPECT_EQ(stats.at("target_bytes").to_number<std::uint64_t>(), target.count());
  EXPECT_NEAR(Bytes(stats.at("footprint_bytes").to_number<std::uint64_t>()).as_mib(),
              vm().footprint().now().as_mib(), 8);
  // The guest sees the balloon as cache that is available.
  EXPECT_GE(guest().meminfo("MemAvailable"), target);
}

// Lost otherwise: a process is killed, or reads something that it did not write.
TEST_F(Balloon, PressureTakesTheBalloonAndNothingElse) {
  boot_with_balloon();
  touch_free_memory();
  daemon().set_target(kName, Bytes::mib(600));
  ASSERT_TRUE(wait_inflated(Bytes::mib(600)));
  Agent agent(vm());
  const std::uint64_t evicted_before = agent.number("evicted_pages");
  guest().fill("filler", Bytes::mib(500));
  EXPECT_EQ(guest().check("filler"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
  // 500 MiB do not fit beside a balloon of 600 MiB in 1 GiB.
  EXPECT_GT(agent.number("evicted_pages") - evicted_before, Bytes::mib(100).whole_pages());
  EXPECT_LT(agent.resident(), Bytes::mib(500));
  // And it comes back when the pressure is over.
  guest().drop("filler");
  EXPECT_TRUE(wait_inflated(Bytes::mib(600)));
}

// Lost otherwise: a guest that was promised memory does not get it.
TEST_F(Balloon, ALowerTargetAndTargetZeroGiveMemoryBack) {
  boot_with_balloon();
  daemon().set_target(kName, Bytes::mib(500));
  ASSERT_TRUE(wait_inflated(Bytes::mib(500)));
  Agent agent(vm());
  const Bytes free_before = guest().meminfo("MemFree");

  daemon().set_target(kName, Bytes::mib(100));
  EXPECT_TRUE(
      wait_for("the balloon is at 100 MiB", [&] { return agent.resident() <= Bytes::mib(100); }));
  EXPECT_GE(guest().meminfo("MemFree"), free_before + Bytes::mib(350));

  daemon().set_target(kName, Bytes(0));
  EXPECT_TRUE(wait_for("the balloon is empty", [&] { return agent.resident() == Bytes(0); }));
  EXPECT_GE(guest().meminfo("MemFree"), free_before + Bytes::mib(450));
  guest().fill("filler", Bytes::mib(600));
  EXPECT_EQ(guest().check("filler"), 0U);
}

// Lost otherwise: the part of the balloon that the host counts on.
TEST_F(Balloon, TheFloorSurvivesPressure) {
  boot_with_balloon();
  daemon().set_target(kName, Bytes::mib(500));
  daemon().set_floor(kName, Bytes::mib(200));
  ASSERT_TRUE(wait_inflated(Bytes::mib(500)));
  Agent agent(vm());
  ASSERT_TRUE(wait_for("the floor is locked",
                       [&] { return Bytes(agent.number("locked_bytes")) >= Bytes::mib(200); }));
  guest().fill("filler", Bytes::mib(560));
  EXPECT_EQ(guest().check("filler"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
  EXPECT_GE(Bytes(agent.number("locked_bytes")), Bytes::mib(200));
  EXPECT_GE(agent.resident(), Bytes::mib(200));
  EXPECT_LT(agent.resident(), Bytes::mib(400));
}

// Lost otherwise: a page that the kernel moved while the host worked on it.
TEST_F(Balloon, CompactionDoesNotTouchData) {
  boot_with_balloon();
  touch_free_memory();
  guest().fill("held", Bytes::mib(150));
  daemon().set_target(kName, Bytes::mib(500));
  // While it grows, and after.
  for (int i = 0; i < 6; ++i) guest().put_file("/proc/sys/vm/compact_memory", "1");
  ASSERT_TRUE(wait_inflated(Bytes::mib(500)));
  const std::uint64_t moved_before = guest().vmstat("pgmigrate_success");
  for (int i = 0; i < 3; ++i) guest().put_file("/proc/sys/vm/compact_memory", "1");
  std::cout << "pages migrated with the balloon full: "
            << guest().vmstat("pgmigrate_success") - moved_before << "\n";
  EXPECT_GT(guest().vmstat("compact_daemon_wake") + guest().vmstat("compact_migrate_scanned"), 0U);
  EXPECT_EQ(guest().check("held"), 0U);
  guest().fill("filler", Bytes::mib(400));
  EXPECT_EQ(guest().check("filler"), 0U);
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
}

}  // namespace
}  // namespace fileballoon
