// Paging a VM through its keeper, by hot attach: the frames that are paged out hold a guest's data,
// so nothing that happens to the daemon or the keeper may turn them into zeros.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/eventually.h"
#include "tests/integration/keeper_fixture.h"
#include "tests/integration/uffd_stand_in.h"
#include "uffd/pager/paging_client.h"

namespace fileballoon::faultd {
namespace {

using fileballoon::testing::StandIn;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr Bytes kRam = Bytes::mib(64);

class PagedVm : public fileballoon::testing::KeeperTest {
 protected:
  ~PagedVm() override { vmm_.kill_and_wait(); }  // its keeper ends with it
  [[nodiscard]] PagingOptions file_store() const {
    PagingOptions paging;
    paging.vm = "stand-in";
    paging.path = directory();
    return paging;
  }
  /// Half of the RAM paged out, by a daemon that lives on in `client_`.
  void page_out_half(const PagingOptions& paging, std::chrono::milliseconds patience = kPatient) {
    ASSERT_EQ(vmm_.ask("fill 0 16384"), "ok");
    ram_ = std::make_unique<GuestRam>(GuestRam::open(vmm_.pid()).value());
    client_ = FaultdClient::attach(*ram_, options(patience)).value();
    keeper_ = client_->keeper();
    auto pager = PagingClient::connect(socket()).value();
    const auto started = pager.start(paging);
    ASSERT_TRUE(started.has_value()) << started.error().message;
    ASSERT_TRUE(pager.set_goal(Bytes::mib(32)).has_value());
    wait_for_half(pager);
  }
  static void wait_for_half(PagingClient& pager) {
    auto status = pager.status();
    ASSERT_TRUE(eventually(
        [&] {
          status = pager.status();
          return !status || status->service.footprint <= Bytes::mib(32);
        },
        30s, 100ms))
        << status->service.footprint.as_mib() << " MiB";
    ASSERT_TRUE(status.has_value()) << status.error().message;
    EXPECT_GE(status->service.pager.paged_pages, 8192U);
  }
  [[nodiscard]] bool marked() const { return std::filesystem::exists(paging_marker(socket())); }

  StandIn vmm_;
  std::unique_ptr<GuestRam> ram_;
  std::unique_ptr<FaultdClient> client_;
  pid_t keeper_ = 0;
};

TEST_F(PagedVm, HalfPagedOutSurvivesTheDaemonsSigkill) {
  ASSERT_EQ(vmm_.ask("fill 0 16384"), "ok");
  const pid_t daemon = ::fork();
  if (daemon == 0) {
    const GuestRam ram = GuestRam::open(vmm_.pid()).value();
    const auto client = FaultdClient::attach(ram, options()).value();
    auto pager = PagingClient::connect(socket()).value();
    const bool ok =
        pager.start(file_store()).has_value() && pager.set_goal(Bytes::mib(32)).has_value();
    for (; ok;) {
      ::pause();
    }
    ::_exit(1);
  }
  // Killed in the middle of it.
  auto pager = PagingClient::connect(socket());
  ASSERT_TRUE(eventually([&] {
    if (!pager) {
      pager = PagingClient::connect(socket());
    }
    return pager && pager->status()->service.pager.paged_pages >= 1000;
  }));
  ::kill(daemon, SIGKILL);
  ::waitpid(daemon, nullptr, 0);
  // The keeper goes on towards the goal, and a new daemon finds it.
  wait_for_half(*pager);
  ram_ = std::make_unique<GuestRam>(GuestRam::open(vmm_.pid()).value());
  client_ = FaultdClient::attach(*ram_, options()).value();
  EXPECT_EQ(client_->restarts(), 0U);
  ASSERT_TRUE(pager->clear_goal().has_value());
  EXPECT_EQ(vmm_.ask("check 0 16384"), "0");
  EXPECT_EQ(vmm_.ask("errors"), "0");
  EXPECT_EQ(pager->status()->service.pager.lost_pages, 0U);
}

TEST_F(PagedVm, DetachBringsEverythingBackFirst) {
  page_out_half(file_store());
  EXPECT_TRUE(marked());
  auto pager = PagingClient::connect(socket()).value();
  std::vector<std::uint64_t> seen;
  const auto done =
      pager.page_in_all([&](const Pager::Progress& progress) { seen.push_back(progress.done); });
  ASSERT_TRUE(done.has_value()) << done.error().message;
  EXPECT_GE(done->total, 8192U);
  EXPECT_EQ(done->done, done->total);
  EXPECT_EQ(done->lost, 0U);
  EXPECT_TRUE(client_->detach().has_value());
  EXPECT_TRUE(ends(keeper_));
  EXPECT_FALSE(marked());
  EXPECT_EQ(vmm_.ask("check 0 16384"), "0");
}

TEST_F(PagedVm, AKeeperToldToLeaveBringsEverythingBackFirst) {
  for (const bool by_signal : {true, false}) {
    page_out_half(file_store());
    if (by_signal) {
      ::kill(keeper_, SIGTERM);
    } else {
      (void)client_->detach();  // without paging in before
    }
    EXPECT_TRUE(ends(keeper_));
    EXPECT_FALSE(marked());
    EXPECT_EQ(vmm_.ask("check 0 16384"), "0");
    EXPECT_EQ(vmm_.ask("errors"), "0");
  }
}

TEST_F(PagedVm, AKeeperThatHangsIsNotKilledWhileFramesArePagedOut) {
  page_out_half(file_store(), kImpatient);
  ::kill(keeper_, SIGSTOP);
  vmm_.send("check 0 16384");  // the guest waits for its pages
  (void)client_->stats();      // a daemon notices, and sets it going again
  EXPECT_EQ(vmm_.read_line(), "0");
  EXPECT_EQ(::kill(keeper_, 0), 0);
  EXPECT_EQ(client_->restarts(), 1U) << "a second keeper was started";
}

// 'T' stopped, 'S' sleeping, … from /proc/PID/stat.
char state_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t end = text.rfind(')');
  return end == std::string::npos ? '?' : text[end + 2];
}

TEST_F(PagedVm, AKeeperThatDiesAllTheSameStopsTheVmAndNeverGivesZeros) {
  page_out_half(file_store());
  ::kill(keeper_, SIGKILL);
  EXPECT_TRUE(eventually([&] { return state_of(vmm_.pid()) == 'T'; }));
  // Even if somebody sets it going: its threads wait, and get nothing.
  vmm_.send("check 0 16384");
  ::kill(vmm_.pid(), SIGCONT);
  std::this_thread::sleep_for(300ms);
  std::error_code gone;
  EXPECT_EQ(state_of(vmm_.pid()), 'S') << "it went on, with something in place of its data";
  vmm_.kill_and_wait();
  std::filesystem::remove(socket(), gone);  // nobody is left to do it
}

TEST_F(PagedVm, RefusesStoresByName) {
  ASSERT_EQ(vmm_.ask("fill 0 16384"), "ok");
  ram_ = std::make_unique<GuestRam>(GuestRam::open(vmm_.pid()).value());
  client_ = FaultdClient::attach(*ram_, options()).value();
  auto pager = PagingClient::connect(socket()).value();
  PagingOptions paging = file_store();
  const auto error_of = [&](const PagingOptions& wanted) {
    const auto started = pager.start(wanted);
    return started.has_error() ? started.error().message : "was accepted";
  };
  EXPECT_THAT(pager.set_goal(kRam).error().message, HasSubstr("has not been started"));
  paging.path = directory() + "/none";
  EXPECT_THAT(error_of(paging), HasSubstr(directory() + "/none"));
  paging.path = directory();
  paging.file = Bytes::gib(1 << 20);
  EXPECT_THAT(error_of(paging), HasSubstr("too small"));
  paging.path.clear();
  EXPECT_THAT(error_of(paging), HasSubstr("paging needs a store"));
  EXPECT_FALSE(marked());
  EXPECT_EQ(error_of(file_store()), "was accepted");
  EXPECT_THAT(error_of(file_store()), HasSubstr("has been started"));
  EXPECT_EQ(vmm_.ask("check 0 16384"), "0");
}

}  // namespace
}  // namespace fileballoon::faultd
