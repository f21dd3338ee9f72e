// A guest whose agent lies. The host discards only what it has itself seen to be zero, and where it
// holds a userfaultfd (in both refault modes, where the VMM allows it) nothing can be written in
// between.

#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

class Hostile : public VmTest {
 protected:
  static constexpr const char* kChannel = "/dev/virtio-ports/org.fileballoon.0";
  void boot_attached(const std::string& refault = "kernel") {
    boot();
    start_daemon();
    daemon().attach(kName, vm(), refault);
    guest().fill("held", Bytes::mib(64));
  }
  void expect_unharmed() {
    EXPECT_EQ(guest().check("held"), 0U);
    EXPECT_EQ(guest().shell("echo alive"), "alive\n");
    EXPECT_TRUE(daemon().process().running());
  }
  static std::uint64_t number(const boost::json::object& object, std::string_view key) {
    return object.at(key).to_number<std::uint64_t>();
  }
};

// Lost otherwise: the data of a guest whose agent is wrong about its frames.
TEST_F(Hostile, LiveDataThatIsReportedStays) {
  boot_attached();
  const auto result = guest().call("report-live-data", {{"channel", kChannel}, {"pages", 2048}});
  EXPECT_EQ(number(result, "errors"), 0U);
  EXPECT_EQ(number(result, "discarded"), 0U);
  EXPECT_EQ(number(result, "not_zero"), 2048U);
  EXPECT_EQ(daemon().counter(kName, "frames_not_zero"), 2048U);
  expect_unharmed();
}

// Lost otherwise: what is written between the host's look at a frame and its discard.
TEST_F(Hostile, WhatIsWrittenWhileTheHostDiscardsStays) {
  boot_attached();
  for (const char* refault : {"kernel", "uffd"}) {
    SCOPED_TRACE(refault);
    if (refault == std::string("uffd")) {
      (void)daemon().call("detach", {{"name", kName}});
      daemon().attach(kName, vm(), refault);
    }
    const auto result = guest().call("report-while-writing",
                                     {{"channel", kChannel}, {"pages", 512}, {"rounds", 100}},
                                     std::chrono::seconds(90));
    std::cout << refault << " " << boost::json::serialize(result) << "\n";
    EXPECT_EQ(number(result, "errors"), 0U);
    // Otherwise the two never met, and this shows nothing.
    EXPECT_GT(number(result, "discarded"), 0U);
    EXPECT_GT(number(result, "not_zero"), 0U);
    EXPECT_GT(number(result, "written_before_ack"), 0U);
  }
  expect_unharmed();
}

}  // namespace
}  // namespace fileballoon
