// What balloonfs says to its host when balloon pages go back into use, in each deflate mode, on
// this machine's own kernel with a host that only answers.
#include <gtest/gtest.h>

#include "tests/eventually.h"
#include "tests/integration/balloonfs_mount.h"
#include "tests/integration/fake_host.h"

namespace fileballoon::test {
namespace {

class BalloonfsDeflate : public BalloonfsTest {
 protected:
  void start(const std::string& options, Bytes target) {
    host_.set_limits({target, Bytes(0)});
    ASSERT_TRUE(mount_.start(mount_.channel() + "," + options));
    ASSERT_TRUE(holds(static_cast<long>(target.count()))) << mount_.stats();
  }
  [[nodiscard]] bool holds(long bytes) {
    return eventually([=, this] {
      return mount_.number("resident_bytes") >= bytes && mount_.number("in_flight_bytes") == 0;
    });
  }

  FakeHost host_{mount_.socket()};
};

// Lost otherwise: a guest that hears nothing of it pays for reports that nobody asked for.
TEST_F(BalloonfsDeflate, SilentSaysNothing) {
  start("deflate=silent", Bytes::mib(32));
  mount_.evict();
  ASSERT_TRUE(eventually([&] { return mount_.number("evicted_pages") > 16 * 256; }));
  host_.set_limits({Bytes(0), Bytes(0)});
  EXPECT_TRUE(eventually([&] { return mount_.number("resident_bytes") == 0; }));
  EXPECT_EQ(host_.deflated_pages(), 0U);
  EXPECT_EQ(mount_.number("named_pages"), 0);
}

// Lost otherwise: a host that plans with what its guests took back.
TEST_F(BalloonfsDeflate, BatchedNamesWhatReclaimTookAndWhatTheTargetGaveBack) {
  start("deflate=batched,deflate_every=100", Bytes::mib(32));
  mount_.evict();
  EXPECT_TRUE(eventually([&] { return host_.deflated_pages() > 16 * 256; }));
  host_.set_limits({Bytes(0), Bytes(0)});
  // Every page that was reported has left by now, and each is named once at most: a frame that had
  // become balloon again is not named.
  EXPECT_TRUE(eventually([&] {
    return mount_.number("resident_bytes") == 0 &&
           mount_.number("named_pages") == static_cast<long>(host_.deflated_pages()) &&
           host_.deflated_pages() >= 31 * 256;
  }));
  EXPECT_LE(host_.deflated_pages(), host_.reported_pages());
}

// Lost otherwise: a device reads a frame that has no memory, since the guest used it unasked.
TEST_F(BalloonfsDeflate, TellHostFirstKeepsEveryPageUntilTheHostHasBackedIt) {
  start("deflate=tell-host-first", Bytes::mib(64));
  EXPECT_EQ(mount_.number("locked_bytes"), 64 * kMib);
  mount_.evict();
  EXPECT_EQ(mount_.number("resident_bytes"), 64 * kMib);

  // A host without memory: nothing leaves.
  host_.back_with(false);
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  EXPECT_TRUE(eventually([&] { return mount_.number("unbacked_pages") > 0; }));
  EXPECT_EQ(mount_.number("resident_bytes"), 64 * kMib);
  // It is asked again, several requests at a time, and then the pages go.
  host_.back_with(true);
  EXPECT_TRUE(eventually([&] { return mount_.number("resident_bytes") <= 16 * kMib; }));
  EXPECT_GE(host_.asked_pages(), 48U * 256);
  EXPECT_GT(host_.most_asked_at_once(), 1U);
  // And it grows again, by request of the host.
  host_.set_limits({Bytes::mib(32), Bytes(0)});
  EXPECT_TRUE(holds(32 * kMib));
}

TEST_F(BalloonfsDeflate, TellHostFirstKeepsItsPagesWhenTheChannelIsLost) {
  host_.answer_with(FakeHost::Answer::silence);
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel() + ",deflate=tell-host-first"));
  ASSERT_TRUE(eventually([&] { return host_.unanswered() >= 2; }));
  host_.stop_listening();
  host_.hang_up();
  // The host may have discarded what was reported, so the guest may not use it.
  EXPECT_TRUE(eventually([&] { return mount_.number("locked_bytes") >= 2 * kMib; }));
  host_.answer_with(FakeHost::Answer::discarded);
  host_.listen();
  EXPECT_TRUE(holds(16 * kMib));
  EXPECT_GT(host_.reported_pages(), Bytes::mib(16).whole_pages()) << "and they are reported anew";
}

TEST_F(BalloonfsDeflate, TellHostFirstGivesAllBackByRequestBeforeItEnds) {
  start("deflate=tell-host-first", Bytes::mib(64));
  EXPECT_EQ(mount_.stop(), 0);
  EXPECT_GE(host_.asked_pages(), 64U * 256);
}

// Lost otherwise: a balloon that can never be deflated.
TEST_F(BalloonfsDeflate, TellHostFirstDoesNotInflateForAHostThatCannotBackFrames) {
  host_.offer_backing(false);
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel() + ",deflate=tell-host-first"));
  EXPECT_TRUE(
      eventually([&] { return mount_.stats().find("cannot back frames") != std::string::npos; }));
  EXPECT_EQ(mount_.number("resident_bytes"), 0);
}

TEST_F(BalloonfsDeflate, BadOptionsNameWhatThereIs) {
  EXPECT_FALSE(mount_.start(mount_.channel() + ",deflate=loud"));
  EXPECT_NE(mount_.output().find("silent, batched, tell-host-first"), std::string::npos)
      << mount_.output();
  EXPECT_FALSE(mount_.start(mount_.channel() + ",deflate_every=1"));
  EXPECT_NE(mount_.output().find("from 100 to 60000"), std::string::npos) << mount_.output();
}

// Lost otherwise: target, resident, absent and footprint look like one number in the guest.
TEST_F(BalloonfsDeflate, StatsShowWhatTheHostMeasures) {
  start("deflate=silent", Bytes::mib(8));
  EXPECT_NE(mount_.stats().find("\"host_absent_bytes\": null"), std::string::npos);
  host_.send_state(Bytes::mib(7));
  EXPECT_TRUE(eventually([&] { return mount_.number("host_absent_bytes") == 7 * kMib; }));
}

}  // namespace
}  // namespace fileballoon::test
