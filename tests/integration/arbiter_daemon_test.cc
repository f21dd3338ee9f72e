// The arbiter in fileballoond: pressure of one VM moves memory of another, as bands say, by the
// same path as an operator's target; a dry run moves nothing; and one host has one arbiter.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "daemon_fixture.h"
#include "tests/integration/uffd_stand_in.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace json = boost::json;

constexpr Bytes kGuestRam = Bytes::mib(512);

class ArbiterDaemonTest : public DaemonTest {
 protected:
  void start_with(const std::string& mode) {
    start("[arbiter]\nmode = \"" + mode + "\"\nlimit = \"700M\"\ninterval_ms = 200\nlock = \"" +
          path("arbiter.lock") + "\"\n");
  }
  /// Both VMs hold 400 MiB, which the limit does not cover; `high` uses its, `low` half of it.
  void attach_both() {
    attach("high", high, high_guest);
    attach("low", low, low_guest);
    ASSERT_EQ(ctl({"mem-band", "low", "--band", "3", "--minimum", "64M"}).status, 0);
    for (StandInVm* vm : {&high, &low}) {
      vm->touch(0, Bytes::mib(400).whole_pages());
    }
    tell();
  }
  /// What the agents say; again and again, since old numbers do not count.
  void tell() {
    const auto say = [](ScriptedGuest& guest, Bytes available) {
      guest.send(wire::Stats{{{wire::StatKey::resident_pages, 0},
                              {wire::StatKey::mem_available_bytes, available.count()}}});
    };
    say(high_guest, kGuestRam - Bytes::mib(380));
    say(low_guest, kGuestRam - Bytes::mib(200));
  }
  Bytes wanted(const std::string& name) {
    return Bytes(stats(name).at("wanted_footprint_bytes").to_number<std::uint64_t>());
  }
  json::object decision(const json::value& arbiter, std::string_view name) {
    for (const json::value& vm : arbiter.at("vms").as_array()) {
      if (vm.at("name").as_string() == name) {
        return vm.as_object();
      }
    }
    ADD_FAILURE() << "nothing is said of " << name;
    return {};
  }
  StandInVm high{kGuestRam};
  StandInVm low{kGuestRam};
  ScriptedGuest high_guest{path("high.sock")};
  ScriptedGuest low_guest{path("low.sock")};
};

TEST_F(ArbiterDaemonTest, PressureOfTheHighBandTakesFromTheLowBand) {
  start_with("on");
  attach_both();
  EXPECT_TRUE(eventually([&] {
    tell();
    return wanted("high") >= Bytes::mib(380) && wanted("low") <= Bytes::mib(300);
  })) << ctl({"arbiter"}).text;
  EXPECT_GE(wanted("low"), Bytes::mib(64));
  EXPECT_LE(wanted("high") + wanted("low"), Bytes::mib(700));
  EXPECT_TRUE(has_event("share-moved", "low"));
  const auto limits = low_guest.expect<wire::LimitsMessage>();
  ASSERT_TRUE(limits) << "the guest must hear of it";
  EXPECT_THAT(ctl({"arbiter"}).text,
              AllOf(HasSubstr("limit 700 MiB"), HasSubstr("low "), HasSubstr("high ")));
  // The operator has the last word.
  ASSERT_EQ(call("arbiter", {{"mode", "off"}}).at("mode"), "off");
  EXPECT_EQ(wanted("low"), kGuestRam);
}

TEST_F(ArbiterDaemonTest, ADryRunSaysWhatWouldBeDoneAndDoesNothing) {
  start_with("off");
  attach_both();
  EXPECT_TRUE(eventually([&] {
    tell();
    return stats("low").at("guest").is_object() && stats("high").at("guest").is_object();
  }));
  const Output output = ctl({"arbiter", "--dry-run", "--json"});
  ASSERT_EQ(output.status, 0) << output.error;
  const json::object low_vm = decision(output.json(), "low");
  EXPECT_LE(low_vm.at("share_bytes").to_number<std::uint64_t>(), Bytes::mib(300).count());
  EXPECT_EQ(wanted("low"), kGuestRam) << "a dry run must move nothing";
  EXPECT_FALSE(has_event("share-moved"));
}

// ------------------------------------------------------------------------------- the limit, a wall

class PagedTest : public DaemonTest {
 protected:
  /// Of the VM's `paging` in stats; 0 where it is not there (yet).
  Bytes number(const std::string& vm, std::string_view key) {
    const json::value paging = stats(vm).at("paging");
    const json::value* found = paging.is_object() ? paging.as_object().if_contains(key) : nullptr;
    return found == nullptr || found->is_null() ? Bytes(0)
                                                : Bytes(found->to_number<std::uint64_t>());
  }
  Bytes footprint(const std::string& vm) {
    return Bytes(stats(vm).at("footprint_bytes").to_number<std::uint64_t>());
  }
};

class HostLimitTest : public PagedTest {
 protected:
  ~HostLimitTest() override {
    for (testing::StandIn* vmm : {&first, &second}) {
      vmm->kill_and_wait();  // its keeper ends with it
    }
  }
  void start_with(const std::string& mode) {
    std::filesystem::create_directories(path("store"));
    start("[arbiter]\nmode = \"" + mode + "\"\nlimit = \"80M\"\ninterval_ms = 200\nlock = \"" +
          path("arbiter.lock") + "\"\n[paging]\npath = \"" + path("store") + "\"\n");
  }
  /// Of both VMs. They are not read at the same instant: memory that goes from one to the other
  /// meanwhile is not counted twice.
  Bytes footprints() {
    const Bytes before = footprint("vm1");
    const Bytes other = footprint("vm2");
    return std::min(before, footprint("vm1")) + other;
  }
  void attach(const std::string& name, const testing::StandIn& vmm, ScriptedGuest& guest) {
    const Output done = ctl({"attach", name, "--pid", std::to_string(vmm.pid()), "--channel",
                             guest.socket(), "--refault", "uffd"});
    ASSERT_EQ(done.status, 0) << done.error;
    ASSERT_TRUE(guest.connect());
  }
  // RAM of 64 MiB each, on a host that has 80 MiB for both.
  testing::StandIn first{{"--quiet"}};
  testing::StandIn second{{"--quiet"}};
  ScriptedGuest first_guest{path("first.sock")};
  ScriptedGuest second_guest{path("second.sock")};
};

// Two guests fill all of their RAM at once, while the daemon is there and while it is not: were the
// limit a goal only, the host would be out of memory before anybody had looked.
TEST_F(HostLimitTest, IsAWallWithAndWithoutTheDaemonAndNothingIsLost) {
  start_with("on");
  attach("vm1", first, first_guest);
  attach("vm2", second, second_guest);
  for (const char* vm : {"vm1", "vm2"}) {
    ASSERT_TRUE(eventually([&] { return number(vm, "ceiling_bytes") > Bytes(0); }, 10s))
        << json::serialize(stats(vm));
  }
  first.send("fill 0 8192");
  second.send("fill 0 8192");
  Bytes peak;
  const auto both = [&](const char* what, const char* expected) {
    std::array<std::thread, 2> waiting;
    std::atomic<int> done{0};
    std::array<std::string, 2> answers;
    for (std::size_t i = 0; i < 2; ++i) {
      waiting.at(i) = std::thread([&, i] {
        answers.at(i) = (i == 0 ? first : second).read_line();
        ++done;
      });
    }
    while (done < 2) {
      if (daemon_.running()) {
        peak = std::max(peak, footprints());
      }
      std::this_thread::sleep_for(5ms);
    }
    for (std::size_t i = 0; i < 2; ++i) {
      waiting.at(i).join();
      EXPECT_EQ(answers.at(i), expected) << what;
    }
  };
  both("the first half", "ok");
  // The keepers go on without their daemon, and hold what it was that they were told.
  daemon_.end(SIGKILL);
  first_guest.hang_up();
  second_guest.hang_up();
  first.send("fill 8192 8192");
  second.send("fill 8192 8192");
  both("the second half", "ok");
  start_with("on");
  ASSERT_TRUE(eventually([&] {
    return call("list").as_array().size() == 2 && number("vm2", "paged_bytes") > Bytes(0);
  }));
  EXPECT_LE(footprints(), Bytes::mib(80)) << "while the daemon was away";
  first.send("check 0 16384");
  second.send("check 0 16384");
  both("all of it once more, with the new daemon", "0");
  EXPECT_LE(peak, Bytes::mib(80));
  EXPECT_GE(peak, Bytes::mib(60)) << "the wall was never reached";
  EXPECT_EQ(first.ask("errors"), "0");
  EXPECT_EQ(second.ask("errors"), "0");
  // A ceiling pages out: not where the policy forbids that.
  ASSERT_EQ(ctl({"mem-policy", "vm2", "balloon-only"}).status, 0);
  EXPECT_TRUE(eventually([&] { return number("vm2", "ceiling_bytes") == Bytes(0); }));
  EXPECT_GT(number("vm1", "ceiling_bytes"), Bytes(0));
  // Who turns the arbiter off wants no ceilings either.
  ASSERT_EQ(call("arbiter", {{"mode", "off"}}).at("mode"), "off");
  EXPECT_TRUE(eventually([&] { return number("vm1", "ceiling_bytes") == Bytes(0); }));
}

// ------------------------------------------------------------------------------- paged-out memory

class PagedNeedTest : public PagedTest {
 protected:
  ~PagedNeedTest() override {
    vmm.kill_and_wait();  // its keeper ends with it
  }
  Bytes need() {
    const json::value arbiter = ctl({"arbiter", "--json"}).json();
    const json::array& vms = arbiter.at("vms").as_array();
    return vms.empty() ? Bytes(0) : Bytes(vms[0].at("need_bytes").to_number<std::uint64_t>());
  }
  /// The guest says that it uses all that it has filled.
  void tell() {
    guest.send(wire::Stats{{{wire::StatKey::resident_pages, 0},
                            {wire::StatKey::mem_available_bytes, Bytes::mib(32).count()}}});
  }
  testing::StandIn vmm{{"--quiet", "--mib", "512"}};
  ScriptedGuest guest{path("guest.sock")};
};

TEST_F(PagedNeedTest, WhatLiesPagedOutIsNeededWhenItIsAskedBack) {
  std::filesystem::create_directories(path("store"));
  start("[arbiter]\nmode = \"on\"\nlimit = \"320M\"\ninterval_ms = 200\nlock = \"" +
        path("arbiter.lock") + "\"\n[paging]\npath = \"" + path("store") + "\"\n");
  const Output done = ctl({"attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel",
                           guest.socket(), "--refault", "uffd"});
  ASSERT_EQ(done.status, 0) << done.error;
  ASSERT_TRUE(guest.connect());
  tell();
  ASSERT_TRUE(eventually([&] { return number("vm1", "ceiling_bytes") > Bytes(0); }))
      << json::serialize(stats("vm1"));
  ASSERT_EQ(vmm.ask("fill 0 122880"), "ok");  // 480 MiB
  EXPECT_TRUE(eventually(
      [&] {
        tell();
        return need() > Bytes(0) && need() <= footprint("vm1") + Bytes::mib(16) &&
               footprint("vm1") <= Bytes::mib(320);
      },
      180s))  // what was in use and a fast deflation fade with time constants of 60 and 30 s
      << ctl({"arbiter"}).text;
  EXPECT_EQ(vmm.ask("check 0 122880"), "0");
  tell();
  EXPECT_TRUE(eventually([&] { return need() >= Bytes::mib(420); })) << ctl({"arbiter"}).text;
}

TEST_F(ArbiterDaemonTest, ASecondArbiterOnTheHostIsRefusedByName) {
  start_with("on");
  std::ofstream(path("second.toml"))
      << "socket = \"" << path("second.sock") << "\"\nstate_dir = \"" << path("second") << "\"\n"
      << "[arbiter]\nmode = \"on\"\nlock = \"" << path("arbiter.lock") << "\"\n";
  const Output second = run_daemon({"--config", path("second.toml")});
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.error,
              AllOf(HasSubstr("another arbiter"), HasSubstr(std::to_string(daemon_.pid())),
                    HasSubstr("arbiter.lock")));
  EXPECT_EQ(call("arbiter").at("mode"), "on") << "the first one must not be harmed";
}

TEST_F(ArbiterDaemonTest, WhatItCannotDoIsRefused) {
  start_with("off");
  EXPECT_THAT(ctl({"arbiter", "--mode", "maybe"}).error, HasSubstr("off, dry-run or on"));
  EXPECT_THAT(ctl({"arbiter", "--limit", "12Q"}).error, HasSubstr("bad size"));
}

}  // namespace
}  // namespace fileballoon::host
