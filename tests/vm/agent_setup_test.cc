// How an agent is started in a guest, and with what it may not start: users, privileges, fstab, a
// vsock channel, and memory that is plugged in while it runs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using vmkit::Agent;

// capabilities(7), linux/capability.h
constexpr int kIpcLock = 14;
constexpr int kSysAdmin = 21;

class AgentSetup : public VmTest {
 protected:
  /// Starts the agent as `how` says; what it complains of.
  std::string refusal(boost::json::object how) {
    try {
      Agent(vm()).mount("target=10M", std::move(how));
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "it started";
  }
};

// Lost otherwise: somebody in a guest does not learn what is missing, or has an agent that says it
// works and does not.
TEST_F(AgentSetup, MissingPrivilegesAreNamedAndFstabWorks) {
  boot();
  start_daemon();
  daemon().attach(kName, vm());
  EXPECT_NE(refusal({{"uid", 1000}}).find("must run as root"), std::string::npos);
  EXPECT_NE(refusal({{"without_capabilities", {kSysAdmin}}}).find("shows no frame numbers"),
            std::string::npos);
  // A kernel without FUSE, or one whose module is not loaded, has no such device.
  guest().shell("mv /dev/fuse /dev/fuse.away");
  EXPECT_THAT(refusal({}), AllOf(HasSubstr("no FUSE"), HasSubstr("modprobe fuse")));
  guest().shell("mv /dev/fuse.away /dev/fuse");

  // A limit of lockable memory: the floor is as large as that, the rest stays evictable.
  Agent agent(vm());
  agent.mount("target=100M,floor=60M", {{"without_capabilities", {kIpcLock}}});
  wait_connected();
  daemon().set_target(kName, Bytes::mib(100));
  daemon().set_floor(kName, Bytes::mib(60));
  EXPECT_TRUE(wait_inflated(Bytes::mib(99)));
  EXPECT_LT(Bytes(agent.number("locked_bytes")), Bytes::mib(60));
  EXPECT_NE(std::string(agent.stats().at("floor").as_string()).find("RLIMIT_MEMLOCK"),
            std::string::npos);
  // A daemon without a syslog daemon logs to the kernel's.
  EXPECT_NE(vm().console_tail(400).find("cannot lock more than"), std::string::npos);
  agent.unmount();
  EXPECT_EQ(guest().shell("mount").find("fuse.balloonfs"), std::string::npos);

  guest().shell(
      "echo 'balloon /mnt/balloon fuse.balloonfs "
      "channel=/dev/virtio-ports/org.fileballoon.0,target=64M,nofail 0 0' > /etc/fstab || "
      "(mkdir -p /etc && echo 'balloon /mnt/balloon fuse.balloonfs "
      "channel=/dev/virtio-ports/org.fileballoon.0,target=64M,nofail 0 0' > /etc/fstab); "
      "mount -a");
  agent.wait_mounted();
  wait_connected();
  EXPECT_TRUE(wait_inflated(Bytes::mib(64)));
  EXPECT_NE(guest().shell("mount").find("balloon on /mnt/balloon type fuse.balloonfs"),
            std::string::npos);
  guest().shell("umount /mnt/balloon");
  EXPECT_EQ(guest().shell("mount").find("fuse.balloonfs"), std::string::npos);
}

// Lost otherwise: whoever has vsock and no virtio-serial. The agent connects to its own guest
// (vsock_loopback), and a relay there passes the bytes on: this machine's kernel may not have
// vhost_vsock, and the agent's side is the same.
TEST_F(AgentSetup, TheVsockChannelCarriesABalloon) {
  vmkit::VmOptions options;
  options.initramfs.modules = {"vsock_loopback"};
  boot(options);
  start_daemon();
  daemon().attach(kName, vm());
  guest().call("vsock-relay", {{"port", 9000}, {"path", "/dev/virtio-ports/org.fileballoon.0"}});
  Agent agent(vm());
  agent.mount("channel=vsock:1:9000");
  wait_connected();
  daemon().set_target(kName, Bytes::mib(200));
  EXPECT_TRUE(wait_inflated(Bytes::mib(200)));
  EXPECT_GE(discarded(), Bytes::mib(200));
}

// Lost otherwise: a guest that was given more memory, and whose balloon stops for ever.
TEST_F(AgentSetup, MemoryThatIsPluggedInIsServedAfterTheVmIsAttachedAnew) {
  vmkit::VmOptions options;
  options.qemu_options = {"-m", "slots=2,maxmem=2G"};
  boot(options);
  start_daemon();
  daemon().attach(kName, vm());
  Agent agent(vm());
  agent.mount("cache=off");
  wait_connected();
  daemon().set_target(kName, Bytes::mib(300));
  ASSERT_TRUE(wait_inflated(Bytes::mib(300)));
  guest().fill("held", Bytes::mib(100));
  const Bytes total = guest().meminfo("MemTotal");

  ASSERT_TRUE(vm().qmp().execute("object-add", {{"qom-type", "memory-backend-memfd"},
                                                {"id", "more"},
                                                {"share", true},
                                                {"size", Bytes::mib(512).count()}}));
  ASSERT_TRUE(vm().qmp().execute("device_add",
                                 {{"driver", "pc-dimm"}, {"id", "dimm"}, {"memdev", "more"}}));
  ASSERT_TRUE(wait_for("the guest has it",
                       [&] { return guest().meminfo("MemTotal") >= total + Bytes::mib(500); }));
  // The daemon does not know these frames yet: refused, counted, and nothing of the guest's is
  // lost.
  daemon().set_target(kName, Bytes::mib(1000));
  std::this_thread::sleep_for(std::chrono::seconds(3));
  EXPECT_EQ(guest().check("held"), 0U);

  daemon().call("detach", {{"name", kName}});
  daemon().attach(kName, vm());
  wait_connected();
  // More than all that the VM had at first.
  daemon().set_target(kName, Bytes::mib(1150));
  EXPECT_TRUE(wait_inflated(Bytes::mib(1040)));
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
}

}  // namespace
}  // namespace fileballoon
