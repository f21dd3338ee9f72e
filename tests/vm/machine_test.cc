// Machines other than one small guest: RAM with a hole in it, two guests at once, RAM that the host
// cannot discard, a guest without the channel.

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using vmkit::Agent;

class Machine : public VmTest {};

// Lost otherwise: with RAM above the PCI hole, a frame number is not an offset into the backing,
// and a wrong translation discards other pages than those meant.
TEST_F(Machine, FourGibibytesWithThePciHole) {
  vmkit::VmOptions options;
  options.memory = Bytes::gib(4);
  boot_with_balloon(options);
  const std::string iomem = guest().shell("grep -i 'system ram' /proc/iomem");
  ASSERT_NE(iomem.find("100000000-"), std::string::npos) << "no RAM above 4 GiB:\n" << iomem;
  guest().fill("held", Bytes::mib(300));
  touch_free_memory();
  const Bytes before = vm().footprint().now();
  // More than lies on either side of the hole.
  const Bytes target = Bytes::mib(2300);
  daemon().set_target(kName, target);
  ASSERT_TRUE(wait_inflated(target));
  EXPECT_GE((before - vm().footprint().now()).as_mib(), 0.95 * target.as_mib());
  EXPECT_EQ(daemon().counter(kName, "frames_refused"), 0U);
  EXPECT_EQ(daemon().counter(kName, "frames_not_zero"), 0U);
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
}

// Lost otherwise: one guest's frames are looked up in another's memory.
TEST_F(Machine, TwoGuestsAtOnce) {
  vmkit::VmOptions options;
  options.memory = Bytes::mib(768);
  options.cpus = 1;
  vmkit::Vm& one = boot(options);
  vmkit::Vm& two = boot(options);
  start_daemon();
  daemon().attach("one", one);
  daemon().attach("two", two);
  for (vmkit::Vm* each : {&one, &two}) {
    each->guest().fill("held", Bytes::mib(100));
    vmkit::touch_free_memory(*each);
    Agent(*each).mount();
  }
  wait_connected("one");
  wait_connected("two");
  const Bytes one_before = one.footprint().now();
  const Bytes two_before = two.footprint().now();
  daemon().set_target("one", Bytes::mib(300));
  daemon().set_target("two", Bytes::mib(200));
  EXPECT_TRUE(wait_for("both are inflated", [&] {
    return Agent(one).resident() >= Bytes::mib(300) && Agent(two).resident() >= Bytes::mib(200);
  }));
  EXPECT_GE((one_before - one.footprint().now()).as_mib(), 0.9 * 300);
  EXPECT_GE((two_before - two.footprint().now()).as_mib(), 0.9 * 200);
  EXPECT_LE((two_before - two.footprint().now()).as_mib(), 1.1 * 200);
  EXPECT_EQ(one.guest().check("held"), 0U);
  EXPECT_EQ(two.guest().check("held"), 0U);

  // One leaves; the other does not notice.
  daemon().call("detach", {{"name", "one"}});
  daemon().set_target("two", Bytes::mib(350));
  EXPECT_TRUE(
      wait_for("the other goes on", [&] { return Agent(two).resident() >= Bytes::mib(350); }));
  EXPECT_EQ(one.guest().check("held"), 0U);
  EXPECT_EQ(one.oom_kills() + two.oom_kills(), 0U);
}

// Lost otherwise: a user with a default QEMU command line who is not told what is missing.
TEST_F(Machine, PrivateRamIsRefusedAndTheOptionNamed) {
  vmkit::VmOptions options;
  options.shared_memory = false;
  boot(options);
  start_daemon();
  try {
    daemon().attach(kName, vm());
    FAIL() << "RAM that is private to QEMU was accepted";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("share=on"), std::string::npos) << error.what();
  }
  EXPECT_EQ(guest().shell("echo alive"), "alive\n");
}

// Lost otherwise: two discarders on one guest's RAM, of which one does not know of the other.
TEST_F(Machine, AnotherBalloonOnTheSameRamIsNamed) {
  vmkit::VmOptions options;
  options.virtio_balloon = true;
  boot(options);
  start_daemon();
  std::string said;
  try {
    daemon().attach(kName, vm());
    said = boost::json::serialize(daemon().stats(kName).at("warnings"));
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  EXPECT_NE(said.find("balloon"), std::string::npos) << said;
}

// Lost otherwise: somebody who forgot the channel waits for ever without a word.
TEST_F(Machine, WithoutAChannelTheAgentSaysWhatIsMissing) {
  vmkit::VmOptions options;
  options.channel = false;
  boot(options);
  const auto result =
      guest().call("run", {{"command", "mkdir -p /mnt/balloon; timeout 5 balloonfs /mnt/balloon"}});
  EXPECT_NE(result.at("status").to_number<int>(), 0);
  const std::string output(result.at("output").as_string());
  EXPECT_NE(output.find("org.fileballoon.0"), std::string::npos) << output;
}

// Lost otherwise: nobody knows why balloons of such a guest cost memory instead of giving it.
TEST_F(Machine, InitOnFreeIsWarnedOf) {
  vmkit::VmOptions options;
  options.extra_cmdline = "init_on_free=1";
  boot(options);
  Agent agent(vm());
  agent.mount();
  EXPECT_NE(agent.log().find("init_on_free"), std::string::npos) << agent.log();
}

// Lost otherwise: an operator's commands, as the README shows them, against a real QEMU.
TEST_F(Machine, FileballoonctlDrivesARealGuest) {
  boot();
  start_daemon();
  Agent(vm()).mount();
  const auto ctl = [&](std::vector<std::string> words) {
    const auto result = daemon().ctl(std::move(words));
    EXPECT_EQ(result.status, 0) << result.err;
    return result.out;
  };
  const std::vector<std::string> attach{"attach",    kName,
                                        "--pid",     std::to_string(vm().pid()),
                                        "--channel", vm().channel_socket(),
                                        "--qmp",     vm().daemon_qmp_socket()};
  ctl(attach);
  wait_connected();
  ctl({"mem-set", kName, "50%"});
  ASSERT_TRUE(wait_inflated(Bytes::mib(512)));
  const auto stats = boost::json::parse(ctl({"stats", kName, "--json"}));
  EXPECT_EQ(stats.at("target_bytes").to_number<std::uint64_t>(), Bytes::mib(512).count());
  EXPECT_NE(ctl({"list"}).find(kName), std::string::npos);

  const auto refuse = [&](std::vector<std::string> words, const std::string& because) {
    const auto result = daemon().ctl(std::move(words));
    EXPECT_NE(result.status, 0);
    EXPECT_NE(result.err.find(because), std::string::npos) << result.err;
  };
  refuse(attach, kName);                                 // a second attach
  refuse({"mem-set", kName, "2G"}, "above");             // more than its RAM
  refuse({"mem-set", "nobody", "1G"}, "unknown VM");     // not there
  refuse({"mem-floor", kName, "900M"}, "floor");         // above the target
  refuse({"mem-set", kName, "12 apples"}, "12 apples");  // no size
  ctl({"detach", kName});
  EXPECT_EQ(guest().shell("echo alive"), "alive\n");
}

}  // namespace
}  // namespace fileballoon
