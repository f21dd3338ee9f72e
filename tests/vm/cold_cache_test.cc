// Cold page cache in a real guest: a file system on a disk, a file that was read once, and what
// becomes of it in each mode; and guests whose kernels lack what a mode is made of.

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "tests/vm/fixture.h"
#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using vmkit::Agent;

constexpr Bytes kFile = Bytes::mib(200);

class ColdCacheVm : public VmTest {
 protected:
  /// Boots a guest with a disk mounted on /mnt/disk that holds `file`, with the agent in `mode` and
  /// an empty balloon that wants all of the RAM. `before`: a shell command ahead of the agent.
  void start(const std::string& mode, const std::string& cmdline = {},
             const std::string& before = "true", unsigned cpus = 2) {
    make_disk();
    vmkit::VmOptions options;
    options.cpus = cpus;
    options.disk = dir_.file("disk.img");
    options.extra_cmdline = cmdline;
    boot(options);
    guest().shell("mkdir -p /mnt/disk && mount -t ext4 /dev/vda /mnt/disk; " + before);
    start_daemon();
    daemon().attach(kName, vm());
    agent().mount("cache=" + mode);
    wait_connected();
  }
  void want_everything() { daemon().set_target(kName, vm().options().memory); }

  [[nodiscard]] Agent& agent() {
    if (!agent_) agent_.emplace(vm());
    return *agent_;
  }
  void read_file() { guest().call("read", {{"path", "/mnt/disk/file"}}, seconds(120)); }
  /// Page cache of the guest that is not the balloon's.
  [[nodiscard]] Bytes cache() { return guest().meminfo("Cached") - agent().resident(); }
  [[nodiscard]] std::string text(const char* key) {
    return std::string(agent().stats().at(key).as_string());
  }
  [[nodiscard]] ::testing::AssertionResult cache_falls_below(Bytes size) {
    return wait_for(
        "page cache is below " + to_string(size), [=, this] { return cache() < size; },
        seconds(60));
  }

  void TearDown() override {
    agent_.reset();
    VmTest::TearDown();
  }

 private:
  void make_disk() {
    std::filesystem::create_directory(dir_.file("content"));
    std::ofstream file(dir_.file("content/file"), std::ios::binary);
    const std::string block(1 << 20, 'x');
    for (std::uint64_t i = 0; i < kFile.count() >> 20; ++i) file << block;
    file.close();
    const auto made = vmkit::run_command(
        {"mkfs.ext4", "-q", "-d", dir_.file("content"), dir_.file("disk.img"), "400M"},
        seconds(60));
    ASSERT_EQ(made.status, 0) << made.err;
  }

  vmkit::TempDir dir_{"cold-cache"};
  std::optional<Agent> agent_;
};

// Lost otherwise: the host keeps paying for a file that was read once.
TEST_F(ColdCacheVm, ProactiveGivesWhatWasReadOnceToTheHostAndNothingIsLost) {
  start("proactive");
  want_everything();
  // Written here and dirty for a while: the only copy is in the cache.
  guest().shell(
      "for i in 1 2 3 4 5 6 7 8; do echo $i; done | tee /mnt/disk/small > /dev/null; "
      "dd if=/dev/urandom of=/mnt/disk/new bs=1M count=30 2>/dev/null; "
      "md5sum /mnt/disk/new > /tmp/sum");
  read_file();
  EXPECT_TRUE(cache_falls_below(Bytes::mib(60)));
  EXPECT_GE(agent().number("cache_evicted_pages"), Bytes::mib(150).whole_pages());
  EXPECT_EQ(text("mode"), "proactive");
  EXPECT_EQ(text("cache_method"), "generations");
  EXPECT_EQ(text("cache_note"), "");
  EXPECT_TRUE(
      wait_for("the host has it", [this] { return vm().footprint().now() < Bytes::mib(260); }));
  guest().shell("echo 3 > /proc/sys/vm/drop_caches; md5sum -c /tmp/sum");
  EXPECT_EQ(vm().oom_kills(), 0U);
}

// Lost otherwise: "off" is not off, or a purge takes the balloon instead of the cache; a guest
// keeps cache that nobody has mapped while its host runs short, or gives it away when there is no
// need.
TEST_F(ColdCacheVm, OffKeepsTheCacheUntilAPurgeAndUnmappedFirstUntilFreeMemoryIsShort) {
  start("off");
  daemon().set_target(kName, Bytes::mib(300));
  ASSERT_TRUE(wait_inflated(Bytes::mib(300)));
  read_file();
  std::this_thread::sleep_for(seconds(5));
  EXPECT_GT(cache(), Bytes::mib(190));

  const std::uint64_t evicted = agent().number("evicted_pages");
  const auto asked = daemon().ctl({"purge", kName, "--amount", "100M"});
  EXPECT_EQ(asked.status, 0) << asked.err;
  EXPECT_TRUE(wait_for("the amount has gone", [this] {
    return Bytes(agent().number("purged_bytes")) >= Bytes::mib(100);
  }));
  EXPECT_LT(Bytes(agent().number("purged_bytes")), Bytes::mib(110));
  // More than there is: all there is, and still not the balloon.
  EXPECT_EQ(daemon().ctl({"purge", kName}).status, 0);
  EXPECT_TRUE(cache_falls_below(Bytes::mib(40)));
  EXPECT_EQ(agent().number("evicted_pages"), evicted);
  EXPECT_GE(agent().resident(), Bytes::mib(299));

  EXPECT_EQ(daemon().ctl({"cache", kName, "unmapped-first"}).status, 0);
  EXPECT_TRUE(wait_for("the host's choice", [this] { return text("mode") == "unmapped-first"; }));
  read_file();
  std::this_thread::sleep_for(seconds(2));
  EXPECT_GT(cache(), Bytes::mib(190)) << "there is free memory to grow into";
  want_everything();
  EXPECT_TRUE(cache_falls_below(Bytes::mib(60)));
  EXPECT_EQ(vm().oom_kills(), 0U);
}

// Lost otherwise: the host's epochs do nothing, or a host gone wild keeps the guest busy.
TEST_F(ColdCacheVm, EpochsTakeWhatIsOlderAndThousandsOfThemAreFew) {
  start("proactive");
  EXPECT_EQ(daemon().ctl({"cache", kName, "epoch"}).status, 0);
  EXPECT_TRUE(wait_for("the host's choice", [this] { return text("mode") == "epoch"; }));
  want_everything();
  read_file();
  std::this_thread::sleep_for(seconds(5));
  EXPECT_GT(cache(), Bytes::mib(190));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(daemon().ctl({"epoch", kName, "--advance"}).status, 0);
    std::this_thread::sleep_for(seconds(2));
  }
  EXPECT_TRUE(cache_falls_below(Bytes::mib(60)));

  const std::uint64_t turns = agent().number("epoch_turns");
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 2000; ++i) daemon().call("epoch", {{"name", kName}, {"advance", true}});
  EXPECT_TRUE(
      wait_for("the last epoch is known", [this] { return agent().number("epoch") >= 2004; }));
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  EXPECT_LE(static_cast<double>(agent().number("epoch_turns") - turns), took + 2);
}

TEST_F(ColdCacheVm, AKernelWithoutItsGenerationsIsAskedInSteps) {
  start("proactive", "", "echo n > /sys/kernel/mm/lru_gen/enabled");
  EXPECT_EQ(text("cache_method"), "steps");
  EXPECT_THAT(text("cache_note"), HasSubstr("switched off"));
  want_everything();
  read_file();
  EXPECT_TRUE(wait_for(
      "some of it goes",
      [this] { return agent().number("cache_evicted_pages") > Bytes::mib(10).whole_pages(); },
      seconds(60)));
  EXPECT_LT(agent().number("evicted_pages"), 2000U) << "the balloon was asked as well";
}

// Too little privilege for one of the interfaces: even root may not write lru_gen under lockdown.
TEST_F(ColdCacheVm, ALockedDownKernelIsAskedInStepsAndNamed) {
  start("proactive", "lockdown=integrity");
  EXPECT_EQ(text("cache_method"), "steps");
  EXPECT_THAT(text("cache_note"), HasSubstr("lockdown"));
  daemon().set_target(kName, Bytes::mib(300));
  EXPECT_TRUE(wait_inflated(Bytes::mib(300)));
}

// One CPU: making the first memory cgroup patches code that another CPU may run
// (docs/cold-cache.md).
TEST_F(ColdCacheVm, AGuestWithCgroupV1AloneIsServedThroughAMountOfTheAgentsOwn) {
  start("proactive", "guest.cgroup=v1", "true", 1);
  EXPECT_EQ(guest().shell("grep -c cgroup2 /proc/mounts || true"), "0\n");
  EXPECT_EQ(text("cache_method"), "generations");
  want_everything();
  read_file();
  EXPECT_TRUE(cache_falls_below(Bytes::mib(60)));
}

// Lost otherwise: an operator wonders why nothing happens.
TEST_F(ColdCacheVm, AKernelWithoutDebugfsAndPsiSaysSoAndGoesInSteps) {
  start("proactive", "debugfs=off psi=0");
  EXPECT_EQ(text("cache_method"), "steps");
  EXPECT_THAT(text("cache_note"), HasSubstr("debugfs"));
  EXPECT_THAT(text("cache_note"), HasSubstr("CONFIG_PSI"));
  want_everything();
  // In a cgroup, as every program of a guest with systemd: memory.reclaim reaches it there.
  guest().shell(
      "mkdir -p /sys/fs/cgroup/work && echo $$ > /sys/fs/cgroup/work/cgroup.procs && "
      "cat /mnt/disk/file > /dev/null");
  EXPECT_TRUE(wait_for(
      "some of it goes",
      [this] { return agent().number("cache_evicted_pages") > Bytes::mib(10).whole_pages(); },
      seconds(60)));
}

TEST_F(ColdCacheVm, AKernelWithoutMemoryCgroupsSaysThatNoModeWorks) {
  start("proactive", "cgroup_disable=memory");
  EXPECT_EQ(text("cache_method"), "none");
  EXPECT_EQ(text("cache"), "not possible");
  EXPECT_THAT(text("cache_note"), HasSubstr("memory controller"));
  daemon().set_target(kName, Bytes::mib(300));
  EXPECT_TRUE(wait_inflated(Bytes::mib(300)));  // the balloon itself needs none of it
}

}  // namespace
}  // namespace fileballoon
