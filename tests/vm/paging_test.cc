// Paging a real guest: half of its RAM lies in a store on the host while it checks every page of a
// pattern, and the daemon is killed in the middle. A page that came back as anything else than it
// went would be the guest's memory corrupted.

#include <gtest/gtest.h>
#include <signal.h>

#include <thread>

#include "tests/vm/fixture.h"
#include "uffd/faultd/client.h"
#include "uffd/pager/paging_client.h"

namespace fileballoon {
namespace {

class Paging : public VmTest {};

TEST_F(Paging, AGuestWithHalfItsRamPagedOutChecksItsPatternAcrossASigkill) {
  boot_with_balloon({}, "uffd");
  guest().fill("held", Bytes::mib(500));
  const Bytes before = vm().footprint().now();

  const GuestRam ram = GuestRam::open(vm().pid()).value();
  auto pager = faultd::PagingClient::connect(faultd::default_socket(ram).value()).value();
  fileballoon::PagingOptions options;
  options.vm = kName;
  options.memory = Bytes::mib(128);
  options.path = ::testing::TempDir();
  const auto started = pager.start(options);
  ASSERT_TRUE(started.has_value()) << started.error().message;
  const Bytes goal = Bytes(ram.size().count() / 2);
  ASSERT_GT(before, goal) << "the guest has too little memory in use to show anything";
  // What is above the goal and more: the rest of the guest's RAM was never touched.
  ASSERT_TRUE(pager.set_goal(before - goal).has_value());
  ASSERT_TRUE(wait_for(
      "half of the guest's RAM paged out",
      [&] {
        const auto status = pager.status();
        return status.has_value() && Bytes::pages(status->service.pager.paged_pages +
                                                  status->service.pager.zero_pages) >= goal;
      },
      std::chrono::seconds(120)));
  EXPECT_LE(vm().footprint().now() + Bytes::mib(64), before);
  ASSERT_TRUE(pager.clear_goal().has_value());

  daemon().kill();
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
  const auto status = pager.status();
  ASSERT_TRUE(status.has_value()) << status.error().message;
  EXPECT_EQ(status->service.pager.lost_pages, 0U);
  EXPECT_GT(status->service.pager.paged_in, 10000U) << "the check did not need what was paged out";

  daemon().start();
  wait_connected();
  const auto back = pager.page_in_all([](const auto&) {});
  ASSERT_TRUE(back.has_value()) << back.error().message;
  EXPECT_EQ(back->lost, 0U);
  EXPECT_EQ(guest().check("held"), 0U);
}

}  // namespace
}  // namespace fileballoon
