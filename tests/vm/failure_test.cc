// Whatever dies, the guest goes on, and what is left finds together again.

#include <gtest/gtest.h>
#include <signal.h>

#include <thread>

#include "tests/open_files.h"
#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using vmkit::Agent;

class Failure : public VmTest {
 protected:
  static constexpr Bytes kTarget = Bytes::mib(600);

  // A guest in the middle of inflating, with data of its own in memory.
  void inflate_half_way() {
    boot_with_balloon();
    touch_free_memory();
    guest().fill("held", Bytes::mib(100));
    daemon().set_target(kName, kTarget);
    ASSERT_TRUE(
        wait_for("some of the balloon is inflated", [&] { return discarded() >= Bytes::mib(40); }));
  }

  void expect_unharmed() {
    EXPECT_EQ(guest().check("held"), 0U);
    EXPECT_EQ(vm().oom_kills(), 0U);
  }
};

// Lost otherwise: the guest's data, or the daemon's knowledge of its VMs.
TEST_F(Failure, DaemonKilledWhileInflatingComesBack) {
  inflate_half_way();
  daemon().kill();
  const Bytes half_way = Agent(vm()).resident();
  EXPECT_LT(half_way, kTarget) << "inflation was over before the kill; this shows nothing";
  guest().fill("meanwhile", Bytes::mib(50));
  EXPECT_EQ(guest().check("meanwhile"), 0U);
  guest().drop("meanwhile");
  expect_unharmed();

  daemon().start();
  wait_connected();
  ASSERT_TRUE(wait_inflated(kTarget));
  expect_unharmed();
  EXPECT_LE(vm().footprint().now(), vm().options().memory - kTarget + Bytes::mib(30));
}

// Lost otherwise: a guest whose agent crashed hangs, or can never have a balloon again.
TEST_F(Failure, AgentKilledWhileInflatingMountsAnew) {
  inflate_half_way();
  Agent agent(vm());
  agent.kill();
  EXPECT_LT(discarded(), kTarget) << "inflation was over before the kill; this shows nothing";
  expect_unharmed();
  guest().fill("meanwhile", Bytes::mib(300));
  EXPECT_EQ(guest().check("meanwhile"), 0U);
  guest().drop("meanwhile");

  agent.mount();
  wait_connected();
  ASSERT_TRUE(wait_inflated(kTarget));
  expect_unharmed();
}

// Lost otherwise: a rebooted guest runs on memory that is still taken for balloon.
TEST_F(Failure, AGuestThatRebootsWhileBalloonedStartsClean) {
  boot_with_balloon();
  touch_free_memory();
  daemon().set_target(kName, kTarget);
  ASSERT_TRUE(wait_inflated(kTarget));
  guest().call("reboot");
  vm().wait_ready();
  guest().fill("new", Bytes::mib(700));
  EXPECT_EQ(guest().check("new"), 0U);
  guest().drop("new");
  EXPECT_EQ(vm().oom_kills(), 0U);

  // The same daemon serves the new boot, with the limits that it had.
  Agent(vm()).mount();
  wait_connected();
  ASSERT_TRUE(wait_inflated(kTarget));
  EXPECT_LE(vm().footprint().now(), vm().options().memory - kTarget + Bytes::mib(30));
}

// Lost otherwise: memory of a dead VM stays allocated because the daemon holds it.
TEST_F(Failure, KilledQemuIsForgottenAndItsMemoryFreed) {
  boot_with_balloon();
  daemon().set_target(kName, Bytes::mib(200));
  ASSERT_TRUE(wait_inflated(Bytes::mib(200)));
  EXPECT_TRUE(has_open(daemon().process().pid(), "/memfd:"));
  vm().qemu().signal(SIGKILL);
  EXPECT_TRUE(
      wait_for("the daemon has noticed", [&] { return daemon().call("list").as_array().empty(); }));
  // The daemon's list forgets a VM before its coroutines have ended, with which its memory goes.
  EXPECT_TRUE(wait_for("the daemon holds no memory of it",
                       [&] { return !has_open(daemon().process().pid(), "/memfd:"); }));
  // And goes on with others, under the same name too.
  vmkit::Vm& second = boot();
  daemon().attach(kName, second);
  Agent(second).mount();
  wait_connected();
}

// Lost otherwise: balloons of running guests at every upgrade of the daemon.
TEST_F(Failure, DaemonStoppedAndStartedKeepsTheBalloon) {
  boot_with_balloon();
  daemon().set_target(kName, Bytes::mib(300));
  ASSERT_TRUE(wait_inflated(Bytes::mib(300)));
  EXPECT_TRUE(daemon().terminate());
  EXPECT_GE(Agent(vm()).resident(), Bytes::mib(290));
  daemon().start();
  wait_connected();
  const auto stats = daemon().stats(kName);
  EXPECT_EQ(stats.at("target_bytes").to_number<std::uint64_t>(), Bytes::mib(300).count());
  EXPECT_GE(Agent(vm()).resident(), Bytes::mib(290));
}

// Lost otherwise: a boot script whose mount fails now and then.
TEST_F(Failure, MountingAndUnmountingAgainAndAgain) {
  boot_with_balloon();
  Agent agent(vm());
  for (int i = 0; i < 15; ++i) {
    agent.unmount();
    ASSERT_TRUE(
        wait_for("the agent has ended",
                 [&] {
                   return guest().call("processes", {{"name", "balloonfs"}}).at("processes") == 0;
                 }))
        << "round " << i;
    ASSERT_NO_THROW(agent.mount()) << "round " << i;
  }
  wait_connected();
}

}  // namespace
}  // namespace fileballoon
