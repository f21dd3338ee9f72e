// fileballoond's memory policy, driven over its control socket: how a VM is brought to its target,
// what is said about it, what survives a restart, and what is refused. Where frames are paged out
// they hold a guest's data, so nothing that happens here may change one of them.
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "policy_fixture.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// ------------------------------------------------------------------------- a VM with a balloon
// alone

class BalloonVm : public PolicyTest {
 protected:
  /// A guest that has memory in use, is connected, and says that its balloon is empty.
  void attach_guest() {
    attach("vm1", vm, guest);
    vm.touch(0, kPages / 2);
    std::memset(vm.page(0).data(), 1, kPages / 2 * kPageSize);
    say_resident(Bytes(0));
  }
  void say_resident(Bytes resident) {
    guest.send(wire::Stats{{{wire::StatKey::resident_pages, resident.whole_pages()}}});
  }
  StandInVm vm{kRam};
};

TEST_F(BalloonVm, ThePolicyIsShownChangedAndRememberedOverASigkill) {
  start();
  attach_guest();
  EXPECT_THAT(ctl({"mem-policy", "vm1"}).text,
              AllOf(HasSubstr("balloon-then-page, timeout 5 s, actor fileballoon"),
                    HasSubstr("no-target: no target: the guest keeps what it uses")));
  ASSERT_EQ(
      ctl({"mem-policy", "vm1", "balloon-only", "--timeout", "1.5", "--actor", "balloon"}).status,
      0);
  ASSERT_EQ(ctl({"mem-band", "vm1", "--band", "2", "--minimum", "8M", "--weight", "7"}).status, 0);
  EXPECT_TRUE(has_event("policy-set", "vm1"));
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  std::this_thread::sleep_for(1500ms);  // the state file is written once a second at most
  daemon_.end(SIGKILL);
  guest.hang_up();
  start();
  const json::object found = memory();
  EXPECT_EQ(found.at("policy"), "balloon-only");
  EXPECT_EQ(found.at("timeout_s").to_number<double>(), 1.5);
  EXPECT_EQ(found.at("actor"), "balloon");
  EXPECT_EQ(bytes_in(found, "minimum_bytes"), Bytes::mib(8));
  EXPECT_EQ(found.at("weight").to_number<int>(), 7);
  EXPECT_EQ(bytes_in(found, "ceiling_bytes"), Bytes::mib(16));
  EXPECT_EQ(stats("vm1").at("band").to_number<int>(), 2);
  EXPECT_EQ(bytes_in(stats("vm1"), "target_bytes"), Bytes::mib(48));
}

TEST_F(BalloonVm, AGuestThatGivesNothingIsWaitedForAndThenNamed) {
  start();
  attach_guest();
  ASSERT_EQ(ctl({"mem-policy", "vm1", "--timeout", "1"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  EXPECT_EQ(state(), "primary-working");
  EXPECT_THAT(std::string(memory().at("reason").as_string()), HasSubstr("waiting for "));
  ASSERT_TRUE(reaches("blocked"));
  EXPECT_THAT(std::string(memory().at("reason").as_string()),
              HasSubstr("16 MiB above target: the guest gives no more, and this VM has no pager"));
  EXPECT_TRUE(eventually([&] { return event("policy-state").starts_with("blocked: "); }))
      << "an operator who only reads events must see it, too";
  EXPECT_THAT(ctl({"stats", "vm1"}).text, HasSubstr("blocked: 16 MiB above target"));
  // It needs no target any more: everything is given back.
  ASSERT_EQ(ctl({"mem-set", "vm1", "100%"}).status, 0);
  EXPECT_EQ(state(), "no-target");
}

TEST_F(BalloonVm, BadTargetsPoliciesActorsAndPromisesAreRefusedByName) {
  start();
  attach_guest();
  ASSERT_EQ(ctl({"mem-band", "vm1", "--minimum", "16M"}).status, 0);
  EXPECT_THAT(refusal({"mem-set", "vm1", "8M"}),
              HasSubstr("target 8 MiB is below the VM's minimum of 16 MiB"));
  EXPECT_THAT(refusal({"mem-set", "vm1", "65M"}), HasSubstr("above the VM's RAM of 64 MiB"));
  EXPECT_THAT(refusal({"mem-band", "vm1", "--minimum", "65M"}), HasSubstr("above the guest's RAM"));
  EXPECT_THAT(refusal({"mem-band", "vm1", "--band", "8"}), HasSubstr("from 0 (highest) to 7"));
  EXPECT_THAT(refusal({"mem-band", "vm1", "--weight", "1000001"}), HasSubstr("bad weight"));
  ASSERT_EQ(ctl({"mem-set", "vm1", "32M"}).status, 0);
  EXPECT_THAT(refusal({"mem-band", "vm1", "--minimum", "40M"}),
              HasSubstr("raise the target first"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "balloon-first"}),
              AllOf(HasSubstr("unknown policy"), HasSubstr("page-then-balloon")));
  EXPECT_THAT(
      refusal({"mem-policy", "vm1", "--actor", "xenpaging"}),
      AllOf(HasSubstr("unknown actor"), HasSubstr("balloon, pager"), HasSubstr("external:PATH")));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "--actor", "external:/nonexistent/pager"}),
              HasSubstr("/nonexistent/pager cannot be started: No such file"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "--actor", "external:/etc/passwd"}),
              HasSubstr("not an executable file"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "--timeout", "-1"}), HasSubstr("timeout"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "--timeout", "2h"}), HasSubstr("is no time"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "balloon-only", "--actor", "pager"}),
              HasSubstr("cannot carry out balloon-only"));
  EXPECT_THAT(refusal({"mem-policy", "vm1", "page-only"}), HasSubstr("--refault uffd"));
  EXPECT_EQ(memory().at("policy"), "balloon-then-page") << "a refused change must change nothing";
  EXPECT_EQ(bytes_in(memory(), "minimum_bytes"), Bytes::mib(16));
}

// ----------------------------------------------------------------------------------- external
// actors

class ExternalActors : public BalloonVm {
 protected:
  /// Puts an actor of this behaviour in charge.
  void appoint(const std::string& role) {
    std::filesystem::create_symlink(FILEBALLOON_ACTOR_STAND_IN, path(role));
    const Output done = ctl({"mem-policy", "vm1", "--actor", "external:" + path(role)});
    ASSERT_EQ(done.status, 0) << done.error;
  }
  std::string told(const std::string& role) const {
    std::ifstream file(path(role + ".told"));
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

TEST_F(ExternalActors, OneIsToldTheTargetAndTheDaemonOnlyWatches) {
  start();
  attach_guest();
  appoint("actor-obeys");
  ASSERT_TRUE(eventually([&] { return has_event("actor-subscribed", "vm1"); }));
  EXPECT_EQ(state(), "watching");
  const auto before = stats("vm1").at("target_bytes");
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  EXPECT_TRUE(eventually([&] {
    return told("actor-obeys").find("\"footprint_target_bytes\":16777216") != std::string::npos;
  })) << told("actor-obeys");
  EXPECT_EQ(stats("vm1").at("target_bytes"), before) << "the balloon is not the daemon's now";
  EXPECT_THAT(std::string(memory().at("reason").as_string()), HasSubstr("16 MiB above the target"));
  EXPECT_TRUE(
      eventually([&] { return stats("vm1").at("external_actor").at("says") == "working"; }));
  // Nobody else may take its place.
  auto client = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(client);
  const auto stranger = client->call("actor-subscribe", {{"name", "vm1"}});
  ASSERT_FALSE(stranger);
  EXPECT_THAT(stranger.error().message, HasSubstr("is not the actor of VM 'vm1'"));
  // The daemon takes over again; the program is ended.
  const auto pid = stats("vm1").at("external_actor").at("pid").to_number<pid_t>();
  ASSERT_EQ(ctl({"mem-policy", "vm1", "--actor", "fileballoon"}).status, 0);
  EXPECT_EQ(bytes_in(stats("vm1"), "target_bytes"), Bytes::mib(48));
  EXPECT_TRUE(eventually([&] { return ::kill(pid, 0) != 0; }));
}

TEST_F(ExternalActors, OneThatDiesIsNamedAndStartedAgain) {
  start();
  attach_guest();
  appoint("actor-dies");
  ASSERT_TRUE(eventually([&] { return has_event("actor-died", "vm1"); }));
  EXPECT_THAT(event("actor-died"),
              AllOf(HasSubstr("actor-dies exited with status 3"), HasSubstr("started again in ")));
  EXPECT_TRUE(eventually(
      [&] { return stats("vm1").at("external_actor").at("starts").to_number<int>() >= 2; }));
  ASSERT_EQ(ctl({"mem-policy", "vm1", "--actor", "fileballoon"}).status, 0);
  EXPECT_EQ(state(), "no-target");
}

TEST_F(ExternalActors, OneThatTalksNonsenseIsNamedAndEnded) {
  start();
  attach_guest();
  appoint("actor-babbles");
  ASSERT_TRUE(eventually([&] { return has_event("actor-nonsense", "vm1"); }));
  EXPECT_THAT(event("actor-nonsense"), HasSubstr("is not JSON"));
  EXPECT_TRUE(eventually([&] { return has_event("actor-stopped", "vm1"); }));
  EXPECT_TRUE(eventually([&] { return has_event("actor-died", "vm1"); }));
}

TEST_F(ExternalActors, OneThatSaysWhatIsNotSoIsNamed) {
  start();
  attach_guest();
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  appoint("actor-lies");
  ASSERT_TRUE(eventually([&] { return has_event("actor-nonsense", "vm1"); }));
  EXPECT_THAT(event("actor-nonsense"), HasSubstr("it says at-target, and the footprint of 32 MiB"));
}

TEST_F(ExternalActors, OneEndsWithTheDaemon) {
  start();
  attach_guest();
  appoint("actor-sleeps");
  pid_t pid = 0;
  ASSERT_TRUE(eventually([&] {
    const json::value actor = stats("vm1").at("external_actor").at("pid");
    pid = actor.is_null() ? 0 : actor.to_number<pid_t>();
    return pid > 0;
  }));
  daemon_.end(SIGKILL);
  EXPECT_TRUE(eventually([&] { return ::kill(pid, 0) != 0; })) << "two of them would fight";
}

// ------------------------------------------------------------------------------ a VM that can be
// paged

TEST_F(PagedVm, WhatTheBalloonDoesNotGiveIsPagedOutAndComesBackWhenTheTargetRises) {
  start_paged();
  ASSERT_EQ(ctl({"mem-policy", "vm1", "balloon-then-page", "--timeout", "1"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  EXPECT_EQ(state(), "primary-working") << "the guest's will comes first";
  EXPECT_EQ(paged(), Bytes(0));
  ASSERT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  // The footprint is seen at once, the keeper's own numbers when it is next asked.
  EXPECT_TRUE(eventually([&] { return paged() >= Bytes::mib(27); })) << paged().as_mib();
  EXPECT_LE(bytes_in(stats("vm1"), "footprint_bytes"), Bytes::mib(32) + Bytes::mib(4));
  // The secondary gives way first, and nobody has to touch a page for that.
  ASSERT_EQ(ctl({"mem-set", "vm1", "75%"}).status, 0);
  EXPECT_TRUE(eventually([&] { return paged() <= Bytes::mib(20); }, 15s)) << paged().as_mib();
  EXPECT_GE(paged(), Bytes::mib(8)) << "no more than was asked for";
  ASSERT_EQ(ctl({"mem-set", "vm1", "100%"}).status, 0);
  EXPECT_TRUE(eventually([&] { return paged() == Bytes(0); }, 15s));
  expect_pattern();
}

TEST_F(PagedVm, HalfOfItSurvivesTheDaemonsSigkillAndDetachBringsItBack) {
  start_paged();
  ASSERT_EQ(ctl({"mem-policy", "vm1", "page-only"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  ASSERT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  std::this_thread::sleep_for(1100ms);  // the state file is written once a second at most
  daemon_.end(SIGKILL);
  guest.hang_up();
  expect_pattern();  // with no daemon there at all
  start();
  ASSERT_TRUE(eventually([&] { return paging().at("available").as_bool(); }));
  ASSERT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  EXPECT_GE(paged(), Bytes::mib(27));
  EXPECT_EQ(paging().at("lost_pages").to_number<int>(), 0);
  const Output done = ctl({"detach", "vm1"});
  EXPECT_EQ(done.status, 0) << done.error;
  EXPECT_THAT(event("paging-in"), HasSubstr("back in memory"));
  expect_pattern();
}

TEST_F(PagedVm, AStoreThatIsFullStopsPageOutAndNothingElse) {
  start_paged({"--store-file-limit", "4M"});
  ASSERT_EQ(ctl({"mem-policy", "vm1", "page-only"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  ASSERT_TRUE(eventually([&] { return has_event("paging-stopped", "vm1"); }, 30s));
  EXPECT_THAT(event("paging-stopped"), HasSubstr("full"));
  ASSERT_TRUE(reaches("blocked"));
  EXPECT_THAT(std::string(memory().at("reason").as_string()), HasSubstr("page-out stopped: "));
  expect_pattern();
}

TEST_F(PagedVm, TheDaysWritesAreLimitedAndRemembered) {
  start("[paging]\nbudget_dir = \"" + path("budgets") + "\"\n");
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  std::filesystem::create_directory(path("store"));
  const Output done = attach_paged({"--store-path", path("store"), "--store-daily-writes", "8M"});
  ASSERT_EQ(done.status, 0) << done.error;
  EXPECT_TRUE(std::filesystem::exists(path("budgets/writes-vm1")));
  ASSERT_EQ(ctl({"mem-policy", "vm1", "page-only"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  ASSERT_TRUE(eventually([&] { return has_event("paging-stopped", "vm1"); }, 30s));
  EXPECT_THAT(event("paging-stopped"), HasSubstr("budget"));
  EXPECT_LE(paged(), Bytes::mib(8));
  expect_pattern();
}

TEST_F(PagedVm, StoresThatCannotBeMadeAreNamedAndTheVmIsLeftAlone) {
  start();
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  const auto refusal_of = [&](std::vector<std::string> store) {
    const Output output = attach_paged(std::move(store));
    EXPECT_EQ(output.status, 1) << output.text;
    return output.error;
  };
  EXPECT_THAT(refusal_of({"--store-path", path("none") + "/store"}), HasSubstr("none/store"));
  EXPECT_THAT(refusal_of({"--store-memory", "4K"}), HasSubstr("too small"));
  EXPECT_THAT(refusal_of({"--store-daily-writes", "4M"}), HasSubstr("needs a path"));
  EXPECT_THAT(refusal_of({"--store-memory", "16M", "--store-compression", "gzip"}),
              HasSubstr("lz4"));
  std::filesystem::create_directory(path("store"));
  EXPECT_THAT(refusal_of({"--store-path", path("store"), "--store-file-limit", "1000T"}),
              HasSubstr("too small"));
  std::ofstream(path("notes.txt")) << std::string(8192, 'x');
  EXPECT_THAT(refusal_of({"--store-path", path("notes.txt")}), HasSubstr("notes.txt"));
  EXPECT_THAT(ctl({"attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel", guest.socket(),
                   "--store-memory", "16M"})
                  .error,
              HasSubstr("needs --refault uffd"));
  EXPECT_TRUE(call("list").as_array().empty());
  expect_pattern();
  EXPECT_EQ(attach_paged({"--store-path", path("store")}).status, 0)
      << "it can be had all the same";
}

TEST_F(PagedVm, TheStoreOfAnAttachedVmIsNotChangedInSilence) {
  start_paged();
  const Output output = attach_paged({"--store-memory", "16M"});
  EXPECT_EQ(output.status, 1) << output.text;
  EXPECT_THAT(output.error,
              AllOf(HasSubstr("its store cannot be changed while it is"), HasSubstr("detach it")));
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
  guest.hang_up();
  const Output again = attach_paged({"--store-memory", "16M"});
  EXPECT_EQ(again.status, 0) << again.error;
  expect_pattern();
}

// What is paged out lies where it went, whatever the configuration says by now.
TEST_F(PagedVm, AStoreThatTheConfigurationChangesMeanwhileIsKeptAndNamed) {
  const auto with_store = [&](const std::string& store) {
    return "[[vm]]\nname = \"vm1\"\npid = " + std::to_string(vmm.pid()) + "\nchannel = \"" +
           guest.socket() +
           "\"\nrefault = \"uffd\"\npolicy = \"page-only\"\nfootprint = \"50%\"\n" +
           "paging = " + store + "\n";
  };
  std::filesystem::create_directory(path("store"));
  const std::string first = with_store("{ path = \"" + path("store") + "\" }");
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  start(first);
  ASSERT_TRUE(eventually([&] { return paging().at("available").as_bool(); }));
  ASSERT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  daemon_.end(SIGKILL);
  start(first);
  ASSERT_TRUE(eventually([&] { return has_event("vm-attached", "vm1"); }));
  EXPECT_FALSE(has_event("store-kept")) << "nothing has changed";
  daemon_.end(SIGKILL);
  start(with_store("{ memory = \"16M\" }"));
  ASSERT_TRUE(eventually([&] { return has_event("store-kept", "vm1"); }));
  EXPECT_THAT(event("store-kept"),
              AllOf(HasSubstr("16 MiB of compressed memory"), HasSubstr(path("store")),
                    HasSubstr("detach the VM to change it")));
  ASSERT_TRUE(eventually([&] { return paging().at("available").as_bool(); }));
  EXPECT_GE(paged(), Bytes::mib(27));
  EXPECT_EQ(paging().at("store_memory_bytes").to_number<int>(), 0);
  expect_pattern();
}

TEST_F(PagedVm, AStoreOfAnotherVmIsRefusedByName) {
  start_paged({"--store-memory", "16M"});
  testing::StandIn other{{"--quiet"}};
  ScriptedGuest other_guest(path("other.sock"));
  const std::string file = path("named-store");
  std::ofstream(file).flush();
  const auto attach_other = [&](const std::string& name, pid_t pid, const std::string& channel) {
    return ctl({"attach", name, "--pid", std::to_string(pid), "--channel", channel, "--refault",
                "uffd", "--store-path", file});
  };
  const Output first = attach_other("vm2", other.pid(), other_guest.socket());
  ASSERT_EQ(first.status, 0) << first.error;
  testing::StandIn third{{"--quiet"}};
  ScriptedGuest third_guest(path("third.sock"));
  const Output refused = attach_other("vm3", third.pid(), third_guest.socket());
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("named-store"));
}

TEST_F(PagedVm, AFullFileSystemStopsPageOutAndNothingElse) {
  const std::string folder = path("small");
  std::filesystem::create_directory(folder);
  if (::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "this test mounts a small tmpfs, which needs root";
  }
  const std::shared_ptr<void> unmount(nullptr,
                                      [&](void*) { ::umount2(folder.c_str(), MNT_DETACH); });
  start();
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  // Too small for what it is to hold: refused at once, with the numbers.
  Output output = attach_paged({"--store-path", folder});
  EXPECT_EQ(output.status, 1);
  EXPECT_THAT(output.error, AllOf(HasSubstr("small"), HasSubstr("too small")));
  // Large enough by the limit, and then somebody else fills it.
  output = attach_paged({"--store-path", folder, "--store-file-limit", "6M"});
  ASSERT_EQ(output.status, 0) << output.error;
  std::ofstream(folder + "/somebody-elses") << std::string(7 << 20, 'x');
  ASSERT_EQ(ctl({"mem-policy", "vm1", "page-only"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  ASSERT_TRUE(eventually([&] { return has_event("paging-stopped", "vm1"); }, 30s))
      << json::serialize(stats("vm1"));
  ASSERT_TRUE(reaches("blocked"));
  expect_pattern();
}

}  // namespace
}  // namespace fileballoon::host
