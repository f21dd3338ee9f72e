// Paging a real guest, under the daemon's own control: half of its RAM lies in a store on the host
// while it checks every page of a pattern, and the daemon is killed in the middle; then a target
// that the balloon alone cannot reach. A page that came back as anything else than it went would be
// the guest's memory corrupted.

#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

class Paging : public VmTest {
 protected:
  std::uint64_t paging(const char* key) {
    const auto stats = daemon().stats(kName);
    const auto* value = stats.at("paging").as_object().if_contains(key);
    return value != nullptr ? value->to_number<std::uint64_t>() : 0;
  }
  Bytes footprint() {
    return Bytes(daemon().stats(kName).at("footprint_bytes").to_number<std::uint64_t>());
  }
  void ctl(std::vector<std::string> words) {
    const auto done = daemon().ctl(std::move(words));
    ASSERT_EQ(done.status, 0) << done.err;
  }
};

TEST_F(Paging, AGuestWithHalfItsRamPagedOutChecksItsPatternAcrossASigkill) {
  boot();
  start_daemon();
  daemon().attach(kName, vm(), "uffd",
                  {{"store_memory", "128M"}, {"store_path", ::testing::TempDir()}});
  vmkit::Agent(vm()).mount();
  wait_connected();
  guest().fill("held", Bytes::mib(500));
  ctl({"mem-policy", kName, "page-only"});
  const Bytes before = footprint();
  const Bytes half = Bytes::mib(512);
  ASSERT_GT(before, half) << "the guest has too little memory in use to show anything";
  // What is above that and more: the rest of the guest's RAM was never touched.
  ctl({"mem-set", kName, std::to_string((before - half).count())});
  ASSERT_TRUE(wait_for(
      "half of the guest's RAM is paged out",
      // Less the tolerance of the policy, which stops when the footprint is about there.
      [&] {
        return Bytes(paging("paged_bytes")) + Bytes::pages(paging("zero_pages")) + Bytes::mib(8) >=
               half;
      },
      std::chrono::seconds(120)))
      << boost::json::serialize(daemon().stats(kName));
  EXPECT_LE(vm().footprint().now() + Bytes::mib(64), before);

  daemon().kill();
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
  daemon().start();
  wait_connected();
  ASSERT_TRUE(wait_for("paging is found again", [&] { return paging("paged_in_pages") > 10000; }));
  EXPECT_EQ(paging("lost_pages"), 0U);

  // By will as far as that goes, then by force.
  ctl({"mem-policy", kName, "balloon-then-page"});
  ctl({"mem-set", kName, "350M"});
  ASSERT_TRUE(wait_for(
      "the footprint is below what the balloon could give",
      [&] { return footprint() <= Bytes::mib(350) + Bytes::mib(8); }, std::chrono::seconds(120)))
      << boost::json::serialize(daemon().stats(kName));
  EXPECT_GT(vmkit::Agent(vm()).resident(), Bytes::mib(64)) << "the balloon did nothing";
  EXPECT_GT(paging("paged_bytes"), Bytes::mib(64).count()) << "the pager did nothing";
  EXPECT_EQ(guest().check("held"), 0U);

  // Detach brings everything back, and says how far it is.
  const auto detached = daemon().ctl({"detach", kName});
  EXPECT_EQ(detached.status, 0) << detached.err;
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);
}

}  // namespace
}  // namespace fileballoon
