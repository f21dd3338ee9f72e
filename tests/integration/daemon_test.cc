// fileballoond as it is shipped, driven over its sockets: reports and what they do to memory,
// hostile guests, its own death and restart, the VM's death, the command line and the
// configuration.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "daemon_fixture.h"
#include "tests/open_files.h"
#include "uffd/faultd/client.h"
#include "uffd/faultd/packet_socket.h"
#include "uffd_stand_in.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace json = boost::json;

class Daemon : public DaemonTest {
 protected:
  StandInVm vm{kRam};
  ScriptedGuest guest{path("channel.sock")};
};

// ------------------------------------------------------------------------------- reports and
// memory

TEST_F(Daemon, AReportOfZeroFramesFreesTheirMemoryBeforeTheAck) {
  start();
  attach("vm1", vm, guest);
  vm.touch(1024, 256);
  const Bytes before = vm.footprint();
  guest.send(wire::Report{{{GuestFrame(1024), 256}}});
  const auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  EXPECT_EQ(before - vm.footprint(), Bytes::mib(1))
      << "the memory must be gone when the ACK is here";
  ASSERT_EQ(ack->outcomes.size(), 1U);
  EXPECT_EQ(ack->outcomes[0], (wire::RangeOutcome{256, 0, 0, 0}));
  const auto numbers = stats("vm1");
  EXPECT_EQ(numbers.at("footprint_bytes").to_number<std::uint64_t>(), vm.footprint().count());
  EXPECT_EQ(numbers.at("absent_bytes").to_number<std::uint64_t>(), (kRam - vm.footprint()).count());
  EXPECT_EQ(counter("vm1", "frames_discarded"), 256U);
}

TEST_F(Daemon, LiveDataIsNeverDiscarded) {
  start();
  attach("vm1", vm, guest);
  vm.touch(1024, 16);
  vm.page(1030)[4095] = std::byte{1};
  guest.send(wire::Report{{{GuestFrame(1024), 16}}});
  const auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->outcomes[0], (wire::RangeOutcome{15, 1, 0, 0}));
  EXPECT_EQ(vm.page(1030)[4095], std::byte{1});
  EXPECT_EQ(vm.footprint(), Bytes::pages(1));
}

TEST_F(Daemon, FramesThatAreNoRamOrOutOfOrderAreRefusedAndTheGuestGoesOn) {
  start();
  attach("vm1", vm, guest);
  vm.touch(0, kRam.whole_pages());
  guest.send(wire::Report{{{GuestFrame(0xc0), 4},
                           {GuestFrame(kRam.whole_pages() - 1), 2},
                           {GuestFrame(1024), 8},
                           {GuestFrame(1028), 8},
                           {GuestFrame(512), 8}}});
  auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  std::vector<std::uint32_t> refused;
  for (const auto& outcome : ack->outcomes) {
    refused.push_back(outcome.refused);
  }
  EXPECT_EQ(refused, (std::vector<std::uint32_t>{4, 2, 0, 8, 8}));
  EXPECT_EQ(kRam - vm.footprint(), Bytes::pages(8));
  guest.send(wire::Report{{{GuestFrame(2048), 1}}});
  ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->outcomes[0].discarded, 1U);
}

TEST_F(Daemon, AFloodOfReportsIsAnsweredInOrderWithinItsMemory) {
  start();
  attach("vm1", vm, guest);
  constexpr int kReports = 3000;
  std::vector<std::byte> flood;
  for (int i = 0; i < kReports; ++i) {
    wire::encode(guest.session.next_header(), wire::Report{{{GuestFrame(1024), 64}}}, flood);
  }
  // The flood is written while the answers are read, as by a guest of its own.
  std::thread writer([&] { guest.send_bytes(flood); });
  for (std::uint64_t i = 1; i <= kReports; ++i) {
    const auto ack = guest.expect<wire::Ack>();
    if (!ack || ack->batch != i) {
      ADD_FAILURE() << "ACK " << i << " is missing";
      guest.hang_up();
      break;
    }
  }
  writer.join();
  EXPECT_EQ(counter("vm1", "reports"), static_cast<std::uint64_t>(kReports));
}

TEST_F(Daemon, DaemonStaysSmall) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take memory of their own";
#endif
  start();
  attach("vm1", vm, guest);
  vm.touch(1024, 8192);
  for (std::uint64_t frame = 1024; frame < 9216; frame += 256) {
    guest.send(wire::Report{{{GuestFrame(frame), 256}}});
    ASSERT_TRUE(guest.expect<wire::Ack>());
  }
  std::ifstream status("/proc/" + std::to_string(daemon_.pid()) + "/status");
  std::uint64_t rss_kib = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) {
      rss_kib = std::stoull(line.substr(6));
    }
  }
  RecordProperty("rss_kib", std::to_string(rss_kib));
  EXPECT_GT(rss_kib, 0U);
  EXPECT_LE(rss_kib * 1024, Bytes::mib(16).count() + kRam.whole_pages());
}

TEST_F(Daemon, WithRefaultsByUffdADiscardedFrameComesBackAsZeroAlsoWithoutTheDaemon) {
  start();
  const Output done = ctl({"attach", "vm1", "--pid", std::to_string(vm.pid()), "--channel",
                           guest.socket(), "--refault", "uffd"});
  if (done.status != 0 && done.error.find("userfaultfd") != std::string::npos) {
    GTEST_SKIP() << done.error;
  }
  ASSERT_EQ(done.status, 0) << done.error;
  ASSERT_TRUE(guest.connect());
  vm.touch(1024, 256);
  vm.page(1100)[0] = std::byte{7};
  guest.send(wire::Report{{{GuestFrame(1024), 256}}});
  const auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->outcomes[0], (wire::RangeOutcome{255, 1, 0, 0}));
  EXPECT_EQ(vm.footprint(), Bytes::pages(1));
  EXPECT_EQ(vm.page(1100)[0], std::byte{7});

  daemon_.end(SIGKILL);
  guest.hang_up();
  start();
  ASSERT_TRUE(guest.connect());
  EXPECT_EQ(stats("vm1").at("refault"), "uffd");
  guest.send(wire::Report{{{GuestFrame(2048), 1}}});
  ASSERT_TRUE(guest.expect<wire::Ack>()) << "the daemon works with the keeper that it left behind";
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
  EXPECT_FALSE(has_event("detach-incomplete", "vm1"));
}

// Lost otherwise: a guest whose VMM forbids the userfaultfd could not have a balloon at all.
TEST_F(Daemon, WhereTheVmmAllowsNoUserfaultfdDiscardsGoOnWithAWarning) {
  fileballoon::testing::StandIn vmm({"--sandbox", "--quiet"});
  ASSERT_EQ(vmm.ask("zero 1024 256"), "ok");
  start();
  const Output refused = ctl({"attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel",
                              guest.socket(), "--refault", "uffd"});
  EXPECT_NE(refused.status, 0);
  EXPECT_THAT(refused.error, HasSubstr("seccomp filter forbids userfaultfd(2)"));
  ASSERT_TRUE(guest.accept());  // the connection of that attempt
  guest.hang_up();
  const Output done =
      ctl({"attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel", guest.socket()});
  ASSERT_EQ(done.status, 0) << done.error;
  EXPECT_THAT(json::serialize(stats("vm1").at("warnings")),
              AllOf(HasSubstr("not write-protected"), HasSubstr("seccomp filter forbids")));
  ASSERT_TRUE(guest.connect());
  guest.send(wire::Report{{{GuestFrame(1024), 256}}});
  const auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->outcomes[0], (wire::RangeOutcome{256, 0, 0, 0}));
  EXPECT_EQ(vmm.ask("errors"), "0");
}

// Lost otherwise: data of the guest. A keeper that holds the RAM may be discarding it, so nobody
// else may, least of all without write-protection; once nobody holds it, doing without is allowed.
TEST_F(Daemon, DiscardsGoOnUnprotectedOnlyWhereNoKeeperHoldsTheRam) {
  fileballoon::testing::StandIn vmm({"--sandbox", "--quiet"});  // no keeper of ours gets in
  const std::string keeper = faultd::default_socket(GuestRam::open(vmm.pid()).value()).value();
  // Another's keeper, so busy that it accepts nobody.
  const UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = faultd::socket_address(keeper).value();
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 0), 0);
  std::vector<UniqueFd> queue;
  for (auto fd = faultd::connect_keeper(keeper); fd.has_value();
       fd = faultd::connect_keeper(keeper)) {
    queue.push_back(std::move(*fd));
    ASSERT_LT(queue.size(), 100U);
  }
  start();
  const std::vector<std::string> attach = {
      "attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel", guest.socket()};
  const Output refused = ctl(attach);
  EXPECT_NE(refused.status, 0);
  EXPECT_THAT(refused.error, HasSubstr("hangs: it does not accept connections"));

  std::filesystem::remove(keeper);
  const Output done = ctl(attach);
  ASSERT_EQ(done.status, 0) << done.error;
  EXPECT_THAT(json::serialize(stats("vm1").at("warnings")), HasSubstr("not write-protected"));
}

// As with a QEMU whose write-protection the daemon can have: nothing to warn of, and nobody is left
// behind when the VM is detached.
TEST_F(Daemon, ByDefaultAKeeperWriteProtectsAndLeavesWithTheVm) {
  start();
  attach("vm1", vm, guest);
  EXPECT_THAT(json::serialize(stats("vm1").at("warnings")), Not(HasSubstr("write-protected")));
  const auto keepers = [&] {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/run/fileballoon")) {
      count += entry.path().string().find("faultd-" + std::to_string(vm.pid()) + "-") !=
                       std::string::npos
                   ? 1
                   : 0;
    }
    return count;
  };
  EXPECT_EQ(keepers(), 1U);
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
  EXPECT_TRUE(eventually([&] { return keepers() == 0; }));
}

TEST_F(Daemon, AFastDeflateIsAnEventAsItHappens) {
  fileballoon::testing::StandIn vmm({"--quiet"});
  ASSERT_EQ(vmm.ask("zero 1024 8192"), "ok");
  start();
  const Output done = ctl({"attach", "vm1", "--pid", std::to_string(vmm.pid()), "--channel",
                           guest.socket(), "--refault", "uffd"});
  ASSERT_EQ(done.status, 0) << done.error;
  ASSERT_TRUE(guest.connect());
  guest.send(wire::Report{{{GuestFrame(1024), 8192}}});
  const auto ack = guest.expect<wire::Ack>();
  ASSERT_TRUE(ack);
  ASSERT_EQ(ack->outcomes[0], (wire::RangeOutcome{8192, 0, 0, 0}));
  auto follower = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(follower && follower->call("events", {{"follow", true}}));

  ASSERT_EQ(vmm.ask("fill 1024 8192"), "ok");  // the guest wants its memory back
  const auto next = [&]() -> std::string {
    const auto event = follower->next_notification();
    return event ? std::string(event->at("params").at("event").as_string()) : event.error().message;
  };
  std::string kind = next();
  if (kind == "deflating") {  // the first look may see the beginning only
    kind = next();
  }
  EXPECT_EQ(kind, "deflating-fast");
  EXPECT_EQ(next(), "deflated");
  const json::object deflation = stats("vm1").at("deflation").as_object();
  EXPECT_EQ(deflation.at("total_bytes").to_number<std::uint64_t>(), Bytes::mib(32).count());
  EXPECT_EQ(deflation.at("seen_by"), "keeper");
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
}

TEST_F(Daemon, WithRefaultsByTheKernelTheGuestsWordIsTheDeflation) {
  start();
  attach("vm1", vm, guest);
  ASSERT_EQ(ctl({"mem-set", "vm1", "16M"}).status, 0);  // target 48 MiB
  const auto holds = [&](std::uint64_t mib) { guest.send(wire::Deflated{Bytes::mib(mib), {}}); };
  holds(40);
  EXPECT_TRUE(eventually([&] { return stats("vm1").at("guest").is_object(); }));
  EXPECT_FALSE(has_event("deflating-fast", "vm1"));
  holds(24);
  EXPECT_TRUE(eventually([&] { return has_event("deflating-fast", "vm1"); }));
  const auto total = [&] {
    return stats("vm1").at("deflation").at("total_bytes").to_number<std::uint64_t>();
  };
  EXPECT_EQ(total(), Bytes::mib(16).count());
  // What it gives up because it is asked to is not its will.
  ASSERT_EQ(ctl({"mem-set", "vm1", "100%"}).status, 0);
  holds(0);
  EXPECT_TRUE(eventually([&] {
    return stats("vm1").at("guest").at("resident_bytes").to_number<std::uint64_t>() == 0;
  }));
  EXPECT_EQ(total(), Bytes::mib(16).count());
}

// ---------------------------------------------------------------------------------- hostile guests

TEST_F(Daemon, GarbageEndsTheSessionWithAnErrorAndTheNextOneWorks) {
  start();
  attach("vm1", vm, guest);
  const std::vector<std::byte> garbage(5000, std::byte{0xee});
  guest.send_bytes(garbage);
  const auto error = guest.expect<wire::ErrorMessage>();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, wire::ErrorCode::malformed);
  EXPECT_TRUE(guest.closed_by_host());
  guest.hang_up();  // as QEMU does; until then the socket counts as taken
  ASSERT_TRUE(guest.connect());
  guest.send(wire::Report{{{GuestFrame(1024), 1}}});
  EXPECT_TRUE(guest.expect<wire::Ack>());
  EXPECT_TRUE(has_event("channel-lost", "vm1"));
  EXPECT_EQ(counter("vm1", "sessions_failed"), 1U);
}

TEST_F(Daemon, AGuestThatNeverReadsIsDropped) {
  start("[limits]\nwrite_timeout_ms = 300\n");
  attach("vm1", vm, guest);
  // Answers of 32 KiB each; nobody reads them, so the socket's buffer fills.
  std::vector<FrameRange> ranges;
  for (std::uint64_t i = 0; i < wire::kMaxRanges; ++i) {
    ranges.push_back({GuestFrame(1024 + 2 * i), 1});
  }
  std::thread writer([&] {
    for (int i = 0; i < 40; ++i) {
      guest.send(wire::Report{ranges});
    }
  });
  EXPECT_TRUE(eventually([&] { return has_event("channel-lost", "vm1"); }));
  EXPECT_THAT(std::string(stats("vm1").at("channel").at("last_error").as_string()),
              HasSubstr("did not read"));
  guest.hang_up();
  writer.join();
  EXPECT_TRUE(guest.connect()) << "a guest that reads again is served again";
}

TEST_F(Daemon, AControlClientThatNeverReadsMakesRoomForOthers) {
  start("[limits]\nwrite_timeout_ms = 300\nmax_clients = 2\n");
  auto client = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(client);
  // Small answers, far less than the backlog that is borne, and more than a socket holds.
  for (int i = 0; i < 2000; ++i) {
    ASSERT_TRUE(client->send({{"jsonrpc", "2.0"}, {"id", i}, {"method", "list"}}));
  }
  ::shutdown(client->fd(), SHUT_WR);
  EXPECT_TRUE(eventually([&] {
    pollfd polled{client->fd(), 0, 0};
    return ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
  }));
  EXPECT_THAT(log(), HasSubstr("did not read for 0.3 s"));
  EXPECT_EQ(ctl({"list"}).status, 0);
}

TEST_F(Daemon, FramesOfAnOldSessionDoNothing) {
  start();
  attach("vm1", vm, guest);
  vm.touch(1024, 4);
  const wire::Header stale = guest.session.next_header();
  guest.hang_up();
  ASSERT_TRUE(guest.connect());
  guest.send(stale, wire::Report{{{GuestFrame(1024), 4}}});
  guest.send(wire::Report{{{GuestFrame(2048), 1}}});
  ASSERT_TRUE(guest.expect<wire::Ack>());
  EXPECT_EQ(vm.footprint(), Bytes::pages(4));
  EXPECT_EQ(counter("vm1", "reports"), 1U);
}

TEST_F(Daemon, TheRamOfAnotherVmIsNoticed) {
  start();
  const Output done =
      ctl({"attach", "vm1", "--pid", std::to_string(vm.pid()), "--channel", guest.socket()});
  ASSERT_EQ(done.status, 0) << done.error;
  guest.hello.ram = {{GuestFrame(256), 1 << 20}};
  ASSERT_TRUE(guest.connect());
  const auto error = guest.expect<wire::ErrorMessage>();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, wire::ErrorCode::ram);
  EXPECT_THAT(error->text, HasSubstr("another VM"));
}

// -------------------------------------------------------------------------------------------
// limits

TEST_F(Daemon, MemSetStatesTheFootprintAndTheBalloonGetsTheRest) {
  start();
  attach("vm1", vm, guest);
  ASSERT_EQ(ctl({"mem-set", "vm1", "25%"}).status, 0);
  auto limits = guest.expect<wire::LimitsMessage>();
  while (limits && limits->limits.target == Bytes(0)) {
    limits = guest.expect<wire::LimitsMessage>();  // those of the handshake
  }
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->limits.target, Bytes::mib(48));
  ASSERT_EQ(ctl({"mem-floor", "vm1", "8M"}).status, 0);
  limits = guest.expect<wire::LimitsMessage>();
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->limits.floor, Bytes::mib(8));

  Output refused = ctl({"mem-set", "vm1", "65M"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("above the VM's RAM of 64 MiB"));
  refused = ctl({"mem-floor", "vm1", "49M"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("floor 49 MiB is above the target 48 MiB"));
  refused = ctl({"mem-set", "vm1", "12Q"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("bad size '12Q'"));
  EXPECT_EQ(ctl({"mem-set", "nobody", "1G"}).status, 1);
}

// ---------------------------------------------------------------------------------- attach, detach

TEST_F(Daemon, WhatCannotBeAttachedIsNamed) {
  start();
  const auto refusal = [&](const std::string& name, pid_t pid, const std::string& channel,
                           std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"attach",    name,   "--pid", std::to_string(pid),
                                      "--channel", channel};
    words.insert(words.end(), more.begin(), more.end());
    const Output output = ctl(words);
    EXPECT_EQ(output.status, 1);
    return output.error;
  };
  EXPECT_THAT(refusal("a", 4'194'303, guest.socket()), HasSubstr("does not exist"));
  const pid_t sleeper_pid = ::fork();
  if (sleeper_pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execl("/bin/sleep", "sleep", "60", nullptr);
    ::_exit(127);
  }
  const Child sleeper(sleeper_pid);
  ASSERT_TRUE(eventually([&] {
    std::ifstream name("/proc/" + std::to_string(sleeper_pid) + "/comm");
    std::string text;
    return std::getline(name, text) && text == "sleep";
  }));
  EXPECT_THAT(refusal("a", sleeper.pid(), guest.socket()), HasSubstr("not a VMM"));
  const StandInVm private_vm(kRam, false);
  EXPECT_THAT(refusal("a", private_vm.pid(), guest.socket()),
              AllOf(HasSubstr("-object memory-backend-memfd,id=ram0,size="),
                    HasSubstr("share=on -machine memory-backend=ram0")));
  EXPECT_THAT(refusal("a", vm.pid(), path("none.sock")), HasSubstr("none.sock: No such file"));
  EXPECT_THAT(refusal("a", vm.pid(), path("config.toml")), HasSubstr("is not a socket"));
  EXPECT_THAT(refusal("a", vm.pid(), guest.socket(), {"--qmp", path("none.qmp")}),
              HasSubstr("none.qmp: no such socket"));
  EXPECT_THAT(refusal("a b", vm.pid(), guest.socket()), HasSubstr("bad VM name"));
  EXPECT_THAT(refusal("a", vm.pid(), guest.socket(), {"--refault", "magic"}),
              HasSubstr("write kernel or uffd"));
  EXPECT_THAT(refusal("a", vm.pid(), guest.socket(), {"--band", "99"}), HasSubstr("bad band"));

  const StandInVm large(Bytes::gib(4));
  EXPECT_THAT(refusal("a", large.pid(), guest.socket()), HasSubstr("--qmp SOCKET"));

  attach("vm1", vm, guest);
  EXPECT_THAT(refusal("vm1", large.pid(), path("x.sock")), HasSubstr("named 'vm1' already"));
  EXPECT_THAT(refusal("vm2", vm.pid(), path("x.sock")), HasSubstr("attached already, as VM 'vm1'"));
  const StandInVm other(kRam);
  EXPECT_THAT(refusal("vm2", other.pid(), guest.socket()), HasSubstr("in use by VM 'vm1'"));
}

TEST_F(Daemon, AChannelHeldByAnotherClientIsRefusedByName) {
  start();
  auto holder = JsonLineClient::connect(guest.socket());
  ASSERT_TRUE(holder);
  ASSERT_TRUE(guest.accept());
  const Output refused =
      ctl({"attach", "vm1", "--pid", std::to_string(vm.pid()), "--channel", guest.socket()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("held by another client"));
}

TEST_F(Daemon, DetachTellsTheGuestAndReleasesTheRam) {
  start();
  attach("vm1", vm, guest);
  ASSERT_EQ(ctl({"detach", "vm1"}).status, 0);
  const auto error = guest.expect<wire::ErrorMessage>();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, wire::ErrorCode::detached);
  EXPECT_TRUE(call("list").as_array().empty());
  guest.hang_up();
  attach("again", vm, guest);  // name, process and RAM are free at once
}

TEST_F(Daemon, TwoDaemonsNeverOwnTheSameRam) {
  start();
  attach("vm1", vm, guest);
  const std::string second_socket = path("second.sock");
  // Another daemon altogether, with its own socket and state.
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execl(FILEBALLOOND, FILEBALLOOND, "--config", "/dev/null", "--socket", second_socket.c_str(),
            "--state-dir", path("second").c_str(), nullptr);
    ::_exit(127);
  }
  Child second(pid);
  ASSERT_TRUE(eventually([&] { return JsonLineClient::connect(second_socket).has_value(); }));
  ScriptedGuest other(path("other.sock"));
  auto client = JsonLineClient::connect(second_socket);
  ASSERT_TRUE(client);
  const auto result =
      client->call("attach", {{"name", "mine"}, {"pid", vm.pid()}, {"channel", other.socket()}});
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("another fileballoond"));
}

// -------------------------------------------------------------------------------- deaths, restarts

TEST_F(Daemon, AfterSigkillItFindsItsVmsAndLimitsAgain) {
  start();
  attach("vm1", vm, guest);
  // Several at once: what was answered last must be on disk, however soon after the one before.
  ASSERT_EQ(ctl({"mem-set", "vm1", "70%"}).status, 0);
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  const std::uint64_t size_before = std::filesystem::file_size(path("state/state.json"));
  daemon_.end(SIGKILL);
  EXPECT_TRUE(guest.closed_by_host());
  guest.hang_up();
  start();
  ASSERT_TRUE(guest.connect());
  const auto limits = guest.expect<wire::LimitsMessage>();
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->limits.target, Bytes::mib(32));
  vm.touch(1024, 4);
  guest.send(wire::Report{{{GuestFrame(1024), 4}}});
  EXPECT_TRUE(guest.expect<wire::Ack>());
  EXPECT_EQ(std::filesystem::file_size(path("state/state.json")), size_before);
}

TEST_F(Daemon, SigtermIsACleanEndAndTheVmsAreFoundAgain) {
  start();
  attach("vm1", vm, guest);
  const int status = daemon_.end(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(std::filesystem::exists(path("control.sock")));
  EXPECT_TRUE(guest.closed_by_host());
  guest.hang_up();
  start();
  EXPECT_TRUE(guest.connect());
}

TEST_F(Daemon, AVmThatDiedMeanwhileIsReportedAndForgotten) {
  start();
  attach("vm1", vm, guest);
  daemon_.end(SIGKILL);
  vm.kill();
  start();
  EXPECT_TRUE(call("list").as_array().empty());
  EXPECT_TRUE(has_event("vm-gone", "vm1"));
}

TEST_F(Daemon, WhenTheVmmDiesItsMemoryIsReleasedAtOnce) {
  start();
  attach("vm1", vm, guest);
  EXPECT_TRUE(has_open(daemon_.pid(), "guest-ram"));
  vm.kill();
  EXPECT_TRUE(eventually([&] { return has_event("vm-gone", "vm1"); }));
  EXPECT_TRUE(call("list").as_array().empty());
  // No descriptor of the memfd is left: it would keep the dead guest's memory.
  EXPECT_TRUE(eventually([&] { return !has_open(daemon_.pid(), "guest-ram"); }));
}

TEST_F(Daemon, AChannelThatBreaksIsConnectedAgainForAsLongAsTheVmLives) {
  start();
  attach("vm1", vm, guest);
  for (int i = 0; i < 3; ++i) {
    guest.hang_up();
    ASSERT_TRUE(guest.connect()) << i;
  }
  EXPECT_EQ(counter("vm1", "sessions"), 4U);
}

TEST_F(Daemon, AnAgentThatStartsAnewIsServedOnTheSameConnection) {
  start();
  attach("vm1", vm, guest);
  guest.session.reset();
  guest.hello.boot_id = {9};
  ASSERT_TRUE(guest.shake_hands());
  guest.send(wire::Report{{{GuestFrame(1024), 1}}});
  EXPECT_TRUE(guest.expect<wire::Ack>());
  EXPECT_TRUE(has_event("guest-rebooted", "vm1"));
}

TEST_F(Daemon, ACorruptStateFileIsNamedAndSetAside) {
  std::filesystem::create_directories(path("state"));
  std::ofstream(path("state/state.json")) << "{\"format\":1,\"vms\":[{\"name";
  start();
  EXPECT_TRUE(has_event("state-unreadable"));
  EXPECT_TRUE(std::filesystem::exists(path("state/state.json.corrupt")));
  attach("vm1", vm, guest);
}

TEST_F(Daemon, WithoutRoomForItsStateItGoesOnAndSaysSo) {
  start();
  std::filesystem::create_directory(path("state/state.json.new"));
  attach("vm1", vm, guest);
  EXPECT_TRUE(has_event("state-not-saved"));
  std::filesystem::remove(path("state/state.json.new"));
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  EXPECT_TRUE(eventually([&] { return has_event("state-saved"); }));
}

TEST_F(Daemon, AFullDiskCostsNothingThatWasSavedBefore) {
  const std::string state = path("state");
  std::filesystem::create_directory(state);
  if (::mount("state", state.c_str(), "tmpfs", 0, "size=64k") != 0) {
    ASSERT_EQ(errno, EPERM);
    GTEST_SKIP() << "mounting a small tmpfs needs root";
  }
  struct Unmount {
    std::string at;
    ~Unmount() { ::umount2(at.c_str(), MNT_DETACH); }
  } unmount{state};
  start();
  attach("vm1", vm, guest);
  ASSERT_EQ(ctl({"mem-set", "vm1", "75%"}).status, 0);

  const auto fill_disk = [&] {
    std::ofstream filler(state + "/filler", std::ios::app);
    while (filler << std::string(4096, 'x') << std::flush) {
    }
  };
  fill_disk();
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0) << "the VM is steered all the same";
  EXPECT_TRUE(has_event("state-not-saved"));
  EXPECT_THAT(log(), HasSubstr("No space left on device"));
  daemon_.end(SIGKILL);
  guest.hang_up();
  start();
  ASSERT_TRUE(guest.connect()) << "the VM is found again by the state from before";
  const auto limits = guest.expect<wire::LimitsMessage>();
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->limits.target, Bytes::mib(16));

  fill_disk();  // finding the VM again tried to save, too
  ASSERT_EQ(ctl({"mem-set", "vm1", "60%"}).status, 0);
  std::filesystem::remove(state + "/filler");
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  EXPECT_TRUE(has_event("state-saved"));
}

TEST_F(Daemon, ASecondDaemonOnTheSameSocketIsRefusedByName) {
  start();
  const Output second = run_daemon({"--config", path("config.toml")});
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.error, AllOf(HasSubstr("another fileballoond"), HasSubstr("control.sock")));
  EXPECT_TRUE(call("list").is_array()) << "the first one must not be harmed";
}

// ----------------------------------------------------------------------------------- configuration

TEST_F(Daemon, BadConfigurationsAreNamedAndTheDaemonDoesNotStart) {
  std::ofstream(path("bad.toml")) << "\nlog_levle = \"info\"\n";
  Output output = run_daemon({"--config", path("bad.toml")});
  EXPECT_EQ(output.status, 2);
  EXPECT_THAT(output.error, HasSubstr("bad.toml:2: unknown key 'log_levle'"));
  output = run_daemon({"--check-config", "--config", path("bad.toml")});
  EXPECT_EQ(output.status, 2);
  output = run_daemon({"--config", path("missing.toml")});
  EXPECT_EQ(output.status, 2);
  EXPECT_THAT(output.error, HasSubstr("missing.toml"));
  std::ofstream(path("good.toml")) << "log_level = \"debug\"\n";
  EXPECT_EQ(run_daemon({"--check-config", "--config", path("good.toml")}).status, 0);
  EXPECT_EQ(run_daemon({"--no-such-option"}).status, 2);
}

TEST_F(Daemon, ConfiguredVmsAreAttachedWhenTheirProcessComes) {
  start("[[vm]]\nname = \"web\"\npid_file = \"" + path("web.pid") + "\"\nchannel = \"" +
        guest.socket() + "\"\nfootprint = \"50%\"\nband = 3\n");
  const json::value waiting = call("list");
  EXPECT_EQ(waiting.as_array().at(0).at("state"), "waiting");
  EXPECT_EQ(ctl({"mem-set", "web", "1M"}).status, 1);
  std::ofstream(path("web.pid")) << vm.pid() << "\n";
  ASSERT_TRUE(guest.connect());
  const auto limits = guest.expect<wire::LimitsMessage>();
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits->limits.target, Bytes::mib(32));
  vm.kill();
  EXPECT_TRUE(eventually([&] { return call("list").as_array().at(0).at("state") == "waiting"; }))
      << "it is waited for again";
}

TEST_F(Daemon, TheControlSocketHasTheModeThatWasAsked) {
  start("socket_mode = \"0640\"\n");
  struct stat info {};
  ASSERT_EQ(::stat(path("control.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0640U);
}

// ------------------------------------------------------------------- control socket,
// fileballoonctl

TEST_F(Daemon, BadRequestsGetJsonRpcErrors) {
  start();
  auto client = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(client);
  const auto code_of = [&](std::string_view line) -> std::int64_t {
    const std::string text = std::string(line) + "\n";
    EXPECT_EQ(::write(client->fd(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    const auto reply = client->receive();
    return reply ? reply->at("error").at("code").as_int64() : 0;
  };
  EXPECT_EQ(code_of("not json"), -32700);
  EXPECT_EQ(code_of("[]"), -32600);
  EXPECT_EQ(code_of(R"({"id":1,"method":"list"})"), -32600);
  EXPECT_EQ(code_of(R"({"jsonrpc":"2.0","id":1,"method":"list","params":[]})"), -32600);
  EXPECT_EQ(code_of(R"({"jsonrpc":"2.0","id":1,"method":"frobnicate"})"), -32601);
  EXPECT_EQ(code_of(R"({"jsonrpc":"2.0","id":1,"method":"list","params":{"x":1}})"), -32602);
  EXPECT_EQ(code_of(R"({"jsonrpc":"2.0","id":1,"method":"stats","params":{"name":"x"}})"), -32001);
  EXPECT_TRUE(client->call("list")) << "the connection is still good";
  EXPECT_EQ(code_of(std::string(70'000, 'x')), -32600);
  EXPECT_FALSE(client->receive()) << "a line without end is cut off";
  EXPECT_TRUE(call("list").is_array());
}

TEST_F(Daemon, ASubscriberThatDoesNotReadIsDropped) {
  start();
  attach("vm1", vm, guest);
  auto slow = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(slow && slow->call("events", {{"follow", true}}));
  auto client = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(client);
  // What is kept for a subscriber is counted in bytes, so how many events that is does not matter.
  // Where all is slow the time for one line is over first.
  const auto dropped = [&] {
    return log().find("does not read; dropped") != std::string::npos ||
           log().find("did not read for") != std::string::npos;
  };
  for (int i = 0; i < 50'000 && (i % 1000 != 0 || !dropped()); ++i) {
    ASSERT_TRUE(client->call("arbiter", {{"mode", i % 2 == 0 ? "dry-run" : "off"}}));
  }
  EXPECT_TRUE(dropped());
}

TEST_F(Daemon, EventsAreFollowedAsTheyHappen) {
  start();
  auto follower = JsonLineClient::connect(path("control.sock"));
  ASSERT_TRUE(follower && follower->call("events", {{"follow", true}}));
  attach("vm1", vm, guest);
  const auto event = follower->next_notification();
  ASSERT_TRUE(event) << event.error().message;
  EXPECT_EQ(event->at("params").at("event"), "vm-attached");
  EXPECT_EQ(event->at("params").at("vm"), "vm1");
}

TEST_F(Daemon, EveryReadingVerbSpeaksJson) {
  start();
  attach("vm1", vm, guest);
  guest.send(wire::Stats{{{wire::StatKey::resident_pages, 256}}});
  guest.send(wire::Report{{{GuestFrame(1024), 1}}});
  ASSERT_TRUE(guest.expect<wire::Ack>());
  const json::value list = ctl({"--json", "list"}).json();
  EXPECT_EQ(list.as_array().at(0).at("name"), "vm1");
  EXPECT_EQ(list.as_array().at(0).at("guest_resident_bytes").to_number<std::uint64_t>(), 1U << 20);
  const json::value one = ctl({"stats", "vm1", "--json"}).json();
  EXPECT_EQ(one.at("guest").at("resident_bytes").to_number<std::uint64_t>(), 1U << 20);
  EXPECT_TRUE(ctl({"stats", "--json"}).json().is_array());
  EXPECT_EQ(ctl({"mem-set", "vm1", "16M", "--json"}).json().at("target_bytes"),
            Bytes::mib(48).count());
  EXPECT_TRUE(ctl({"mem-floor", "vm1", "0", "--json"}).json().is_object());
  const std::string events = ctl({"events", "--json"}).text;
  EXPECT_NO_THROW((void)json::parse(events.substr(0, events.find('\n'))));
  EXPECT_TRUE(ctl({"top", "--rounds", "1", "--json"}).json().is_array());
  EXPECT_THAT(ctl({"top", "--rounds", "1"}).text, HasSubstr("vm1"));
  EXPECT_THAT(ctl({"list"}).text, HasSubstr("connected"));
  EXPECT_THAT(ctl({"stats", "vm1"}).text, HasSubstr("measured on the host"));
  EXPECT_THAT(ctl({"detach", "vm1"}).text, HasSubstr("detached"));
}

TEST_F(Daemon, EveryChangingVerbSpeaksJson) {
  start();
  EXPECT_EQ(ctl({"attach", "vm1", "--pid", std::to_string(vm.pid()), "--channel", guest.socket(),
                 "--json"})
                .json()
                .at("name"),
            "vm1");
  ASSERT_TRUE(guest.connect());
  for (const std::vector<std::string>& verb : std::vector<std::vector<std::string>>{
           {"mem-policy", "vm1", "balloon-only", "--timeout", "3s"},
           {"mem-band", "vm1", "--band", "2"},
           {"epoch", "vm1", "--advance"},
           {"purge", "vm1", "--amount", "1M"},
           {"cache", "vm1", "off"},
           {"detach", "vm1"}}) {
    std::vector<std::string> words = verb;
    words.emplace_back("--json");
    const Output output = ctl(words);
    EXPECT_EQ(output.status, 0) << verb[0] << ": " << output.error;
    EXPECT_NO_THROW((void)output.json()) << verb[0] << ": " << output.text;
  }
}

TEST_F(Daemon, WithoutPermissionTheRemedyIsSaid) {
  start();
  const std::vector<std::string> nobody = {"setpriv", "--reuid=65534", "--clear-groups"};
  const auto as_nobody = [&](std::vector<std::string> words) {
    words.insert(words.begin(), nobody.begin(), nobody.end());
    return run(std::move(words));
  };
  Output output = as_nobody({FILEBALLOONCTL, "--socket", path("control.sock"), "list"});
  EXPECT_EQ(output.status, 3);
  EXPECT_THAT(output.error, AllOf(HasSubstr("control.sock: no permission to connect"),
                                  HasSubstr("run as root or as a member of its group")));
  output = as_nobody({FILEBALLOOND, "--socket", path("other.sock"), "--state-dir", path("state2")});
  EXPECT_EQ(output.status, 1);
  EXPECT_THAT(output.text + output.error,
              AllOf(HasSubstr(path("state2")), HasSubstr("run fileballoond as root")));
}

TEST_F(Daemon, ConfiguredLimitsThatDoNotFitAreNamedWhenTheirVmComes) {
  const auto with = [&](const std::string& limits) {
    return "[[vm]]\nname = \"web\"\npid = " + std::to_string(vm.pid()) + "\nchannel = \"" +
           guest.socket() + "\"\n" + limits;
  };
  start(with("footprint = \"50%\"\nfloor = \"40M\"\n"));
  ASSERT_TRUE(eventually([&] { return has_event("attach-failed", "web"); }));
  EXPECT_THAT(event("attach-failed"),
              AllOf(HasSubstr("40 MiB"), HasSubstr("32 MiB"), HasSubstr("floor")));
  daemon_.end(SIGTERM);
  start(with("footprint = \"4096M\"\n"));
  ASSERT_TRUE(eventually([&] { return has_event("attach-failed", "web"); }));
  EXPECT_THAT(event("attach-failed"), AllOf(HasSubstr("4 GiB"), HasSubstr("64 MiB")));
}

TEST_F(Daemon, CtlSaysWhatIsWrongAndHowItEnded) {
  Output output = ctl({"list"});  // no daemon
  EXPECT_EQ(output.status, 3);
  EXPECT_THAT(output.error, AllOf(HasSubstr("control.sock"), HasSubstr("fileballoond")));
  EXPECT_EQ(ctl({"frobnicate"}).status, 2);
  EXPECT_EQ(ctl({"attach", "x"}).status, 2);
  EXPECT_EQ(ctl({"--help"}).status, 0);
  start();
  output = ctl({"stats", "nobody"});
  EXPECT_EQ(output.status, 1);
  EXPECT_THAT(output.error, HasSubstr("unknown VM 'nobody'"));
}

}  // namespace
}  // namespace fileballoon::host
