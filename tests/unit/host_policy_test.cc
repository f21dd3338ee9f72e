// The daemon's memory policy without a daemon: what an actor makes of a policy, how a VM's runner
// follows what operator, arbiter and guest do, and what is read from the host's files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "host/actor_registry.h"
#include "host/cgroup_ceiling.h"
#include "host/config.h"
#include "host/host_memory.h"
#include "host/policy_runner.h"

namespace fileballoon::host {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

// -------------------------------------------------------------------------------------------
// actors

TEST(Actors, AnActorOfOneMechanismMakesEveryPolicyItsOwn) {
  const ActorName balloon{ActorName::Kind::builtin, "balloon"};
  const ActorName pager{ActorName::Kind::builtin, "pager"};
  const ActorName all{ActorName::Kind::builtin, std::string(kDefaultActor)};
  EXPECT_EQ(effective_policy(MemoryPolicy::balloon_then_page, all).value(),
            MemoryPolicy::balloon_then_page);
  EXPECT_EQ(effective_policy(MemoryPolicy::page_then_balloon, balloon).value(),
            MemoryPolicy::balloon_only);
  EXPECT_EQ(effective_policy(MemoryPolicy::balloon_then_page, pager).value(),
            MemoryPolicy::page_only);
  EXPECT_THAT(effective_policy(MemoryPolicy::page_only, balloon).error().message,
              HasSubstr("cannot carry out page-only"));
}

TEST(Settings, TimeoutsAreReadWithTheirUnit) {
  EXPECT_EQ(parse_timeout("5").value(), 5s);
  EXPECT_EQ(parse_timeout("2.5s").value(), 2500ms);
  EXPECT_EQ(parse_timeout("800ms").value(), 800ms);
  for (const char* bad : {"", "s", "0", "-1", "nan", "inf", "1h", "3601", "5 s", "1e99"}) {
    EXPECT_FALSE(parse_timeout(bad)) << bad;
  }
}

// -------------------------------------------------------------------------------------------
// runner

class FakeActor final : public Actor {
 public:
  bool is_ready() const override { return ready; }
  Bytes withheld() const override { return held; }
  void carry_out(const PolicyOrder& order, Bytes /*footprint*/) override { last = order; }
  bool ready = true;
  Bytes held;
  PolicyOrder last;
};

class Runner : public ::testing::Test {
 protected:
  static constexpr Bytes kRam = Bytes::mib(1024);

  PolicyState after(std::chrono::milliseconds time) {
    for (; time > 0ms; time -= std::min<std::chrono::milliseconds>(time, 250ms)) {
      now += std::min<std::chrono::milliseconds>(time, 250ms);
      runner.step(look, now);
    }
    return runner.order().state;
  }
  EventLog events;
  FakeActor balloon;
  FakeActor pager;
  PolicyRunner runner{"vm1", kRam, events, balloon, &pager};
  PolicyRunner::Look look{Bytes::mib(900), 0, Bytes(0), ""};
  PolicyRunner::Clock::time_point now{1000s};
};

TEST_F(Runner, TheArbitersShareCountsOnlyBelowTheOperatorsTarget) {
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(600)));
  runner.set_share(Bytes::mib(800), false);
  EXPECT_EQ(runner.wanted(), Bytes::mib(600));
  runner.set_share(Bytes::mib(400), false);
  EXPECT_EQ(runner.wanted(), Bytes::mib(400));
  runner.clear_share();
  EXPECT_EQ(runner.wanted(), Bytes::mib(600));
}

TEST_F(Runner, TheArbitersShareIsRoomAndTheOperatorsTargetIsAWish) {
  look.footprint = Bytes::mib(100);
  runner.set_share(Bytes::mib(600), false);
  (void)after(250ms);
  EXPECT_EQ(balloon.last.balloon_target, Bytes(0));
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(600)));
  (void)after(250ms);
  EXPECT_EQ(balloon.last.balloon_target, Bytes::mib(424));
}

TEST_F(Runner, ForceForTheArbitersShareNeedsTheArbitersWord) {
  runner.set_share(Bytes::mib(400), false);
  EXPECT_EQ(after(6s), PolicyState::blocked);
  EXPECT_EQ(pager.last.paging_target, Bytes(0)) << "nothing is paged before all else was asked for";
  runner.set_share(Bytes::mib(400), true);
  EXPECT_EQ(after(1s), PolicyState::secondary_working);
  EXPECT_EQ(pager.last.paging_target, Bytes::mib(500));
}

TEST_F(Runner, WhatTheBalloonCanStillTakeIsNotPaged) {
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(400)));
  look.guest_free = Bytes::mib(264);  // 200 of it beyond the guest's own reserve
  for (int i = 0; i < 30; ++i) {      // it grows, slowly, past its timeout
    balloon.held += Bytes::mib(2);
    look.footprint = look.footprint - Bytes::mib(2);
    (void)after(250ms);
  }
  ASSERT_EQ(runner.order().state, PolicyState::secondary_working);
  const Bytes missing = look.footprint - Bytes::mib(400);
  EXPECT_EQ(pager.last.paging_target, missing - Bytes::mib(200));
  // It grows no more, whatever it says of free memory: nobody waits for it for ever.
  (void)after(3s);
  EXPECT_EQ(pager.last.paging_target, missing);
}

TEST_F(Runner, AStoreThatIsFullIsSaidAndGoesOnBeingAsked) {
  ASSERT_TRUE(runner.set_policy(MemoryPolicy::page_only, std::nullopt, std::nullopt));
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(400)));
  look.pager_problem = "the store is full";
  EXPECT_EQ(after(250ms), PolicyState::blocked);
  EXPECT_THAT(runner.reason(), HasSubstr("page-out stopped: the store is full"));
  EXPECT_GT(pager.last.paging_target, Bytes(0)) << "or it could never go on";
}

TEST_F(Runner, AMinimumMovesTheArbitersShareAndNeverTheOperatorsTarget) {
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(600)));
  runner.set_share(Bytes::mib(200), false);
  ASSERT_TRUE(runner.set_minimum(Bytes::mib(300)));
  (void)after(250ms);
  EXPECT_EQ(runner.describe().at("footprint_target_bytes").to_number<std::uint64_t>(),
            Bytes::mib(300).count());
  EXPECT_THAT(runner.set_minimum(Bytes::mib(700)).error().message,
              HasSubstr("raise the target first"));
  EXPECT_THAT(runner.set_ceiling(Bytes::mib(100)).error().message,
              HasSubstr("below the VM's minimum of 300 MiB"));
}

TEST_F(Runner, WhatWasRememberedAndNoLongerFitsIsNamedAndLeftOut) {
  MemorySettings settings;
  settings.minimum = Bytes::gib(2);  // of a VM that had more RAM
  settings.timeout = 1500ms;
  const Result<void> restored = runner.restore(settings, Bytes::mib(512));
  ASSERT_FALSE(restored);
  EXPECT_THAT(restored.error().message, HasSubstr("above the guest's RAM"));
  EXPECT_EQ(runner.settings().minimum, Bytes(0));
  EXPECT_EQ(runner.settings().timeout, 1500ms);
  EXPECT_EQ(runner.ceiling(), Bytes::mib(512));
}

TEST_F(Runner, EachStateIsAnEventAndAClockThatJumpsEndsNoPatience) {
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(400)));
  EXPECT_EQ(after(250ms), PolicyState::primary_working);
  now += 24h;
  runner.step(look, now);
  EXPECT_EQ(runner.order().state, PolicyState::primary_working);
  now -= 48h;
  runner.step(look, now);
  EXPECT_EQ(runner.order().state, PolicyState::primary_working);
  EXPECT_EQ(after(6s), PolicyState::secondary_working);
  std::vector<std::string> states;
  for (const auto& event : events.recent()) {
    states.emplace_back(event.at("state").as_string());
  }
  EXPECT_THAT(states, ::testing::ElementsAre("primary-working", "secondary-working"));
}

TEST_F(Runner, UnderAnExternalActorNothingIsOrdered) {
  ASSERT_TRUE(runner.set_policy(std::nullopt, std::nullopt,
                                ActorName{ActorName::Kind::external, "/usr/bin/pager"}));
  ASSERT_TRUE(runner.set_ceiling(Bytes::mib(400)));
  EXPECT_EQ(after(10s), PolicyState::watching);
  EXPECT_EQ(pager.last.paging_target, Bytes(0));
  EXPECT_EQ(balloon.last.balloon_target, Bytes(0));
  EXPECT_THAT(runner.reason(), HasSubstr("/usr/bin/pager, which is 500 MiB above the target"));
}

// --------------------------------------------------------------------------------------- host's
// files

class HostFiles : public ::testing::Test {
 protected:
  HostFiles() {
    char name[] = "/tmp/fileballoon-host.XXXXXX";
    root = ::mkdtemp(name);
  }
  ~HostFiles() override { std::filesystem::remove_all(root); }
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  }
  std::string root;
};

TEST_F(HostFiles, MemAvailableAndPressureAreRead) {
  write("/proc/meminfo", "MemTotal:       1000000 kB\nMemAvailable:    2048 kB\n");
  write("/proc/pressure/memory",
        "some avg10=12.50 avg60=1.00 avg300=0.10 total=99\n"
        "full avg10=3.25 avg60=0.50 avg300=0.05 total=50\n");
  const Result<HostReport> report = HostMemory(root).read();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->available, Bytes::mib(2));
  EXPECT_EQ(report->psi_some, 12.5);
  EXPECT_EQ(report->psi_full, 3.25);
}

TEST_F(HostFiles, AKernelWithoutPsiHasNoPressureAndOneWithoutMeminfoIsAnError) {
  EXPECT_THAT(HostMemory(root).read().error().message, HasSubstr("/proc/meminfo"));
  write("/proc/meminfo", "MemAvailable:    2048 kB\n");
  EXPECT_EQ(HostMemory(root).read().value().psi_some, 0);
  write("/proc/meminfo", "MemAvailable:    lots\n");
  EXPECT_FALSE(HostMemory(root).read());
}

TEST_F(HostFiles, TheLowestLimitUpTheTreeOfAVmmsCgroupCounts) {
  write("/proc/42/cgroup", "1:name=systemd:/x\n0::/machine.slice/vm.scope\n");
  const std::string group = "/sys/fs/cgroup/machine.slice/vm.scope";
  write(group + "/memory.current", "300\n");
  write(group + "/memory.high", "max\n");
  write(group + "/memory.max", "2147483648\n");
  write(group + "/memory.pressure", "some avg10=7.00 avg60=0 avg300=0 total=1\n");
  write("/sys/fs/cgroup/machine.slice/memory.high", "1073741824\n");
  write("/sys/fs/cgroup/machine.slice/memory.max", "max\n");
  const auto cgroup = HostMemory(root).cgroup_of(42);
  ASSERT_TRUE(cgroup);
  EXPECT_EQ(cgroup->limit, Bytes::gib(1));
  EXPECT_EQ(cgroup->current, Bytes(300));
  EXPECT_EQ(cgroup->psi_some, 7.0);
  EXPECT_FALSE(HostMemory(root).cgroup_of(43)) << "no such process";
}

TEST_F(HostFiles, WhatElseTheVmmUsesCountsAgainstItsLimit) {
  const CgroupMemory cgroup{Bytes::mib(1000), Bytes::mib(700), 0};
  EXPECT_EQ(ceiling_in(cgroup, Bytes::mib(600)), Bytes::mib(900));
  EXPECT_FALSE(ceiling_in({std::nullopt, Bytes::mib(700), 0}, Bytes::mib(600)));
}

// A VMM that stalls in its cgroup is about to be reclaimed, or killed: the guest has to give
// before.
TEST(CgroupCeiling, StallsInsideACgroupLowerWhatItsVmMayHave) {
  using namespace std::chrono_literals;
  CgroupMemory cgroup{Bytes::mib(1000), Bytes::mib(700), 0};
  const Bytes footprint = Bytes::mib(600);
  CgroupCeiling ceiling;
  EXPECT_FALSE(ceiling.ceiling());
  ceiling.update(cgroup, footprint, 0s);
  const Bytes calm = ceiling.ceiling().value();
  EXPECT_LT(calm, Bytes::mib(900)) << "something is kept free for bursts";
  EXPECT_GT(calm, Bytes::mib(900 * 9 / 10));
  cgroup.psi_some = 40;
  ceiling.update(cgroup, footprint, 5s);
  const Bytes stalled = ceiling.ceiling().value();
  EXPECT_LT(stalled, calm);
  for (int i = 0; i < 100; ++i) {
    ceiling.update(cgroup, footprint, 5s);
  }
  EXPECT_GT(ceiling.ceiling().value(), Bytes::mib(900 * 6 / 10)) << "never all of it";
  cgroup.psi_some = 0;
  for (int i = 0; i < 100; ++i) {
    ceiling.update(cgroup, footprint, 5s);
  }
  EXPECT_EQ(ceiling.ceiling(), calm) << "it must come back";
  cgroup.limit.reset();
  ceiling.update(cgroup, footprint, 5s);
  EXPECT_FALSE(ceiling.ceiling());
}

// -------------------------------------------------------------------------------------
// configuration

TEST(PolicyConfig, StoresArbiterAndPromisesAreRead) {
  const auto config = parse_config(R"(
[paging]
memory = "256M"
compression = "zstd"
path = "/var/spill"
daily_writes = "10G"
budget_dir = "/var/budget"
[arbiter]
mode = "dry-run"
limit = "2G"
idle_tax = 0.5
[[vm]]
name = "web"
pid = 7
channel = "/c"
policy = "page-then-balloon"
timeout = "800ms"
minimum = "25%"
weight = 3
paging = { memory = "64M" }
)",
                                   "f");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->store.memory, Bytes::mib(256));
  EXPECT_EQ(config->store.compression, Compression::zstd);
  EXPECT_EQ(config->store.daily_writes, Bytes::gib(10));
  EXPECT_EQ(config->budget_dir, "/var/budget");
  EXPECT_EQ(config->arbiter.mode, ArbiterMode::dry_run);
  EXPECT_EQ(config->arbiter.limit, Bytes::gib(2));
  EXPECT_EQ(config->arbiter.arbiter.idle_tax, 0.5);
  const ConfiguredVm& vm = config->vms.at(0);
  EXPECT_EQ(vm.memory.policy, MemoryPolicy::page_then_balloon);
  EXPECT_EQ(vm.memory.timeout, 800ms);
  EXPECT_EQ(vm.minimum, "25%");
  EXPECT_EQ(vm.memory.weight, 3U);
  EXPECT_EQ(vm.memory.store.memory, Bytes::mib(64));
}

TEST(PolicyConfig, WhatDoesNotFitIsNamedWithItsLine) {
  const auto error_of = [](const std::string& text) {
    const auto config = parse_config(text, "f");
    return config ? "accepted" : config.error().message;
  };
  EXPECT_THAT(error_of("[arbiter]\nmode = \"maybe\"\n"), HasSubstr("f:2: 'mode': unknown mode"));
  EXPECT_THAT(error_of("[arbiter]\nidle_tax = 1.5\n"), HasSubstr("idle tax"));
  EXPECT_THAT(error_of("[arbiter]\nlimit = \"50%\"\n"), HasSubstr("f:2: 'limit'"));
  EXPECT_THAT(error_of("[paging]\npath = \"spill\"\n"), HasSubstr("no absolute path"));
  EXPECT_THAT(error_of("[paging]\ndaily_writes = \"1G\"\n"), HasSubstr("needs a path"));
  EXPECT_THAT(error_of("[paging]\nmemory = \"4K\"\n"), HasSubstr("too small"));
  const std::string vm = "[[vm]]\nname = \"a\"\npid = 1\nchannel = \"/c\"\n";
  EXPECT_THAT(error_of(vm + "policy = \"page\"\n"), HasSubstr("f:5: 'policy': unknown policy"));
  EXPECT_THAT(error_of(vm + "actor = \"xen\"\n"), HasSubstr("unknown actor"));
  EXPECT_THAT(error_of(vm + "timeout = \"0\"\n"), HasSubstr("out of range"));
  EXPECT_THAT(error_of(vm + "weight = -1\n"), HasSubstr("'weight'"));
}

}  // namespace
}  // namespace fileballoon::host
