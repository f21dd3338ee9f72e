// The arbiter in fileballoond: pressure of one VM moves memory of another, as bands say, by the
// same path as an operator's target; a dry run moves nothing; and one host has one arbiter.
#include <filesystem>
#include <fstream>

#include "daemon_fixture.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace json = boost::json;

constexpr Bytes kRam = Bytes::mib(512);

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
    say(high_guest, kRam - Bytes::mib(380));
    say(low_guest, kRam - Bytes::mib(200));
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
  StandInVm high{kRam};
  StandInVm low{kRam};
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
  EXPECT_EQ(wanted("low"), kRam);
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
  EXPECT_EQ(wanted("low"), kRam) << "a dry run must move nothing";
  EXPECT_FALSE(has_event("share-moved"));
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
