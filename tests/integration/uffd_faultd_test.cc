// The keeper: a guest's faults are answered whatever happens to the daemon. If these failed, a
// crash or an upgrade of fileballoond would hang a guest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <thread>

#include "tests/eventually.h"
#include "tests/integration/keeper_fixture.h"
#include "tests/integration/uffd_stand_in.h"
#include "uffd/faultd/deflation_watch.h"

namespace fileballoon::faultd {
namespace {

using fileballoon::testing::StandIn;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

class Faultd : public fileballoon::testing::KeeperTest {};

// What the daemon does: find the RAM, attach, discard everything that is zero.
struct Daemon {
  Daemon(pid_t pid, const FaultdClient::Options& options)
      : ram(GuestRam::open(pid).value()), client(FaultdClient::attach(ram, options).value()) {}
  DiscardOutcome discard_all() { return client->discard(0, {HostOffset(0), Bytes::mib(64)}); }
  GuestRam ram;
  std::unique_ptr<FaultdClient> client;
};

TEST_F(Faultd, DiscardsAnswersReportsAndLeaves) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  ASSERT_EQ(vmm.ask("zero 0 8192"), "ok");
  Daemon daemon(vmm.pid(), options());
  EXPECT_EQ(daemon.discard_all(), (DiscardOutcome{8192, 8192, 0, 8192}));
  EXPECT_EQ(daemon.client->stats()->absent_pages, 8192U);
  ASSERT_EQ(vmm.ask("fill 0 8192"), "ok");
  std::uint64_t reported = 0;
  for (int i = 0; i < 50 && reported < 8192; ++i) {
    const auto complete = daemon.client->wait_refaults(
        100ms, [&](std::uint32_t, HostRange range) { reported += range.pages(); });
    ASSERT_TRUE(complete.has_value()) << complete.error().message;
  }
  EXPECT_EQ(reported, 8192U);
  const auto stats = daemon.client->stats();
  EXPECT_EQ(stats->refaulted_pages, 8192U);
  EXPECT_LT(stats->engine.missing_faults, 500U);
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");

  const pid_t keeper = daemon.client->keeper();
  EXPECT_TRUE(daemon.client->detach().has_value());
  EXPECT_TRUE(ends(keeper));
  EXPECT_FALSE(std::filesystem::exists(socket()));
  ASSERT_EQ(vmm.ask("zero 0 8192"), "ok");
  ASSERT_EQ(vmm.ask("fill 0 8192"), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
}

TEST_F(Faultd, TellsOfDeflationAtOnceAndCountsItOnce) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Daemon daemon(vmm.pid(), options());
  ASSERT_EQ(daemon.discard_all().discarded, 16384U);
  ASSERT_EQ(vmm.ask("fill 0 100"), "ok");  // before anybody watches
  // The last answer is counted after it has woken the writer.
  ASSERT_TRUE(eventually([&] { return daemon.client->stats()->refaulted_pages >= 100; }));
  auto watch = DeflationWatch::connect(socket()).value();
  pollfd polled{watch.fd(), POLLIN, 0};
  EXPECT_TRUE(watch.ask(10s));
  ASSERT_EQ(::poll(&polled, 1, 5000), 1) << "the first answer comes at once";
  EXPECT_EQ(watch.take().value(), 0U) << "what came back before is history";
  EXPECT_TRUE(watch.ask(10s));
  EXPECT_EQ(::poll(&polled, 1, 100), 0) << "nothing came back";
  ASSERT_EQ(vmm.ask("fill 8192 1000"), "ok");
  std::uint64_t told = 0;
  for (int i = 0; i < 1000 && told < 1000; ++i) {
    ASSERT_EQ(::poll(&polled, 1, 5000), 1);
    const auto more = watch.take();
    ASSERT_TRUE(more.has_value()) << more.error().message;
    told += *more;
    ASSERT_TRUE(watch.ask(10s));
  }
  EXPECT_GE(told, 1000U);
  EXPECT_LT(told, 1000U + 512U) << "a window ahead at most";
  // Whoever asks for ranges still gets them.
  std::uint64_t pages = 0;
  ASSERT_TRUE(
      daemon.client->wait_refaults(100ms, [&](std::uint32_t, HostRange r) { pages += r.pages(); })
          .has_value());
  EXPECT_GE(pages, 1100U);
  EXPECT_TRUE(daemon.client->detach().has_value());
  ASSERT_EQ(::poll(&polled, 1, 5000), 1);
  EXPECT_TRUE(watch.take().has_error());
}

// A daemon in a process of its own, to be ended in every way.
pid_t start_daemon(pid_t vmm, const FaultdClient::Options& options) {
  int ready[2];
  EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    Daemon daemon(vmm, options);
    const bool ok = daemon.discard_all().discarded == 16384;
    (void)!::write(ready[1], ok ? "y" : "n", 1);
    for (;;) {
      ::pause();
    }
  }
  ::close(ready[1]);
  char answer = 0;
  EXPECT_EQ(::read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  ::close(ready[0]);
  return child;
}

TEST_F(Faultd, TheGuestGoesOnAcrossADaemonThatIsKilledCrashesOrIsStopped) {
  for (const int signal : {SIGKILL, SIGSEGV, SIGSTOP}) {
    SCOPED_TRACE(::strsignal(signal));
    StandIn vmm;
    ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
    const pid_t daemon = start_daemon(vmm.pid(), options());
    vmm.send("fill 0 16384");  // the guest fills memory …
    ::kill(daemon, signal);    // … while the daemon goes
    EXPECT_EQ(vmm.read_line(), "ok");
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    // A new daemon finds the keeper at its work.
    if (signal == SIGSTOP) {
      ::kill(daemon, SIGKILL);
    }
    ::waitpid(daemon, nullptr, 0);
    ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
    Daemon next(vmm.pid(), options());
    EXPECT_EQ(next.client->restarts(), 0U) << "the keeper should have been there";
    EXPECT_EQ(next.discard_all().discarded, 16384U);
    EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    EXPECT_EQ(vmm.ask("errors"), "0");
    EXPECT_TRUE(next.client->detach().has_value());
  }
}

TEST_F(Faultd, AnUpgradedDaemonTakesTheKeeperOver) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  pid_t keeper = 0;
  {
    Daemon old(vmm.pid(), options());
    keeper = old.client->keeper();
    EXPECT_EQ(old.discard_all().discarded, 16384U);
    vmm.send("fill 0 16384");
  }
  EXPECT_EQ(vmm.read_line(), "ok");
  Daemon fresh(vmm.pid(), options());
  EXPECT_EQ(fresh.client->keeper(), keeper);
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
}

TEST_F(Faultd, AKeeperThatDiesIsReplacedAndTheKernelAnswersMeanwhile) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Daemon daemon(vmm.pid(), options());
  ASSERT_EQ(daemon.discard_all().discarded, 16384U);
  const pid_t keeper = daemon.client->keeper();
  vmm.send("fill 0 16384");
  ::kill(keeper, SIGKILL);
  EXPECT_EQ(vmm.read_line(), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  EXPECT_EQ(daemon.discard_all().discarded, 16384U);
  EXPECT_NE(daemon.client->keeper(), keeper);
  EXPECT_EQ(daemon.client->restarts(), 2U);
  EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
}

TEST_F(Faultd, AKeeperThatHangsIsKilledSoThatTheGuestGoesOn) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Daemon daemon(vmm.pid(), options(kImpatient));
  ASSERT_EQ(daemon.discard_all().discarded, 16384U);
  const pid_t keeper = daemon.client->keeper();
  ::kill(keeper, SIGSTOP);
  vmm.send("fill 0 16384");
  const auto stats = daemon.client->stats();  // notices, kills, replaces
  EXPECT_TRUE(stats.has_value());
  EXPECT_EQ(vmm.read_line(), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
  EXPECT_NE(daemon.client->keeper(), keeper);
}

// Clients whose connections nobody accepts. Were they waited for, one hung keeper would take a
// worker of the daemon after the other, and with them the VMs of others.
TEST_F(Faultd, AKeeperThatAcceptsNobodyIsAnErrorAtOnce) {
  StandIn vmm({"--quiet"});
  const UniqueFd hung(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = socket_address(socket()).value();
  ASSERT_EQ(::bind(hung.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(hung.get(), 1), 0);
  auto watch = DeflationWatch::connect(socket());
  ASSERT_TRUE(watch.has_value()) << "asked, not waited for: " << watch.error().message;
  EXPECT_TRUE(watch->ask(1ms));
  pollfd polled{watch->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, 0), 0);

  std::vector<UniqueFd> queued;
  for (auto fd = connect_keeper(socket()); fd.has_value(); fd = connect_keeper(socket())) {
    queued.push_back(std::move(*fd));
    ASSERT_LT(queued.size(), 100U);
  }
  const auto hangs = HasSubstr("hangs: it does not accept connections");
  EXPECT_THAT(connect_keeper(socket()).error().message, hangs);
  EXPECT_THAT(DeflationWatch::connect(socket()).error().message, hangs);
  EXPECT_TRUE(is_kept(socket())) << "nobody else may discard that VM's RAM";
  const GuestRam ram = GuestRam::open(vmm.pid()).value();
  const auto client = FaultdClient::attach(ram, options(kImpatient));
  ASSERT_TRUE(client.has_error());
  EXPECT_THAT(client.error().message, hangs);
  std::filesystem::remove(socket());
}

TEST_F(Faultd, EndsWithTheVm) {
  StandIn vmm;
  Daemon daemon(vmm.pid(), options());
  const pid_t keeper = daemon.client->keeper();
  vmm.kill_and_wait();
  EXPECT_TRUE(ends(keeper));
  EXPECT_FALSE(std::filesystem::exists(socket()));
  EXPECT_EQ(daemon.discard_all().failed, 16384U);
}

// `--refault kernel`: the keeper guards discards, and nothing else depends on it.
TEST_F(Faultd, WhereTheKernelAnswersRefaultsItOnlyGuardsDiscards) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  ASSERT_EQ(vmm.ask("zero 0 8192"), "ok");
  FaultdClient::Options kernel = options(kImpatient);
  kernel.refaults = RefaultMode::kernel;
  Daemon daemon(vmm.pid(), kernel);
  EXPECT_EQ(daemon.discard_all(), (DiscardOutcome{8192, 8192, 0, 8192}));
  EXPECT_EQ(daemon.ram.footprint(), Bytes::mib(32));
  ASSERT_EQ(vmm.ask("fill 0 8192"), "ok");
  EXPECT_EQ(daemon.client->stats()->engine.missing_faults, 0U) << "the kernel's business";
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");

  // Stopped, or killed: no guest waits for it.
  for (const int signal : {SIGSTOP, SIGKILL}) {
    ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
    ASSERT_EQ(daemon.discard_all().discarded, 16384U);
    const pid_t keeper = daemon.client->keeper();
    ::kill(keeper, signal);
    EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    (void)daemon.client->stats();  // notices, and starts another
    EXPECT_NE(daemon.client->keeper(), keeper);
    std::this_thread::sleep_for(1100ms);  // it is replaced at most once a second
  }
  EXPECT_EQ(vmm.ask("errors"), "0");
}

TEST_F(Faultd, AKeeperThatDiesInTheMiddleOfADiscardLeavesNothingArmed) {
  for (const RefaultMode mode : {RefaultMode::kernel, RefaultMode::engine}) {
    StandIn vmm;
    FaultdClient::Options wanted = options();
    wanted.refaults = mode;
    ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
    Daemon daemon(vmm.pid(), wanted);
    const pid_t keeper = daemon.client->keeper();
    std::thread discards([&] { (void)daemon.discard_all(); });
    std::this_thread::sleep_for(5ms);
    ::kill(keeper, SIGKILL);
    discards.join();
    EXPECT_EQ(vmm.ask("fill 0 16384"), "ok") << "a writer waits for a keeper that is dead";
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    (void)daemon.client->detach();
  }
}

TEST_F(Faultd, AKeeperOfTheOtherModeIsReplaced) {
  StandIn vmm;
  Daemon first(vmm.pid(), options());
  const pid_t keeper = first.client->keeper();
  FaultdClient::Options kernel = options();
  kernel.refaults = RefaultMode::kernel;
  Daemon second(vmm.pid(), kernel);
  EXPECT_NE(second.client->keeper(), keeper);
  EXPECT_TRUE(ends(keeper));
}

TEST_F(Faultd, SaysWhyItCannotAttach) {
  StandIn vmm({"--sandbox", "--quiet"});
  GuestRam ram = GuestRam::open(vmm.pid()).value();
  const auto client = FaultdClient::attach(ram, options());
  ASSERT_TRUE(client.has_error());
  EXPECT_THAT(client.error().message, HasSubstr("seccomp filter forbids"));
  FaultdClient::Options missing = options();
  missing.program = "/nonexistent/faultd";
  const auto none = FaultdClient::attach(ram, missing);
  ASSERT_TRUE(none.has_error());
  EXPECT_THAT(none.error().message, HasSubstr("/nonexistent/faultd"));
}

TEST_F(Faultd, GarbageOnItsSocketEndsThatConnectionOnly) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Daemon daemon(vmm.pid(), options());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, socket().c_str());
  for (const std::size_t size : {std::size_t{1}, sizeof(Request), std::size_t{60000}}) {
    const UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string garbage(size, 'x');
    ASSERT_EQ(::send(fd.get(), garbage.data(), size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
    char answer = 0;
    EXPECT_LE(::recv(fd.get(), &answer, 1, 0), 0);
  }
  EXPECT_EQ(daemon.discard_all().discarded, 16384U);
  EXPECT_EQ(daemon.client->restarts(), 1U);
}

}  // namespace
}  // namespace fileballoon::faultd
