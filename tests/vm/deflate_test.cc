// Deflate modes against the real daemon: what the host hears, and when its memory is there.

#include <gtest/gtest.h>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using vmkit::Agent;

class Deflate : public VmTest {};

// Lost otherwise: a host that asked to hear of deflation does not, or a device meets a frame
// without memory.
TEST_F(Deflate, BatchedIsHeardAndTellHostFirstHasMemoryBackedBeforeItIsUsed) {
  boot();
  start_daemon();
  daemon().attach(kName, vm(), "kernel", {{"back_frames", true}});
  Agent agent(vm());
  agent.mount("deflate=batched,deflate_every=200");
  wait_connected();
  daemon().set_target(kName, Bytes::mib(600));
  ASSERT_TRUE(wait_inflated(Bytes::mib(600)));
  guest().fill("filler", Bytes::mib(450));
  const std::uint64_t evicted = agent.number("evicted_pages");
  ASSERT_GT(evicted, Bytes::mib(50).whole_pages());
  EXPECT_TRUE(
      wait_for("the daemon has heard of it",
               [&] { return daemon().counter(kName, "frames_deflated") >= evicted * 9 / 10; }))
      << daemon().counter(kName, "frames_deflated") << " of " << evicted;
  EXPECT_EQ(guest().check("filler"), 0U);
  guest().drop("filler");
  // The guest knows what the host measures.
  EXPECT_TRUE(wait_for("both know the same", [&] {
    const auto told = agent.stats().at("host_absent_bytes");
    const Bytes absent = vm().options().memory - vm().footprint().now();
    return told.is_number() &&
           std::abs(Bytes(told.to_number<std::uint64_t>()).as_mib() - absent.as_mib()) < 8;
  }));
  daemon().set_target(kName, Bytes(0));
  ASSERT_TRUE(wait_for("the balloon is empty", [&] { return agent.resident() == Bytes(0); }));
  agent.unmount();

  // A serial port does not show that its reader has gone; the next one starts a session of its own.
  const std::uint64_t sessions = daemon().counter(kName, "sessions");
  agent.mount("deflate=tell-host-first");
  ASSERT_TRUE(wait_for("the new agent has a session",
                       [&] { return daemon().counter(kName, "sessions") > sessions; }));
  touch_free_memory();
  daemon().set_target(kName, Bytes::mib(400));
  ASSERT_TRUE(wait_inflated(Bytes::mib(400)));
  EXPECT_EQ(agent.number("locked_bytes"), Bytes::mib(400).count());
  const Bytes full = vm().footprint().now();
  guest().put_file("/proc/sys/vm/compact_memory", "1");
  EXPECT_EQ(agent.number("migrated_pages"), 0U) << "pinned pages do not move";

  daemon().set_target(kName, Bytes::mib(100));
  ASSERT_TRUE(
      wait_for("the balloon is at 100 MiB", [&] { return agent.resident() <= Bytes::mib(100); }));
  // Nobody in the guest has used that memory, and yet it is there.
  EXPECT_GE(daemon().counter(kName, "frames_backed"), Bytes::mib(300).whole_pages());
  EXPECT_GE(vm().footprint().now() + Bytes::mib(16), full + Bytes::mib(300));
  guest().fill("filler", Bytes::mib(500));
  EXPECT_EQ(guest().check("filler"), 0U);
  EXPECT_GE(agent.resident(), Bytes::mib(99)) << "reclaim has no part in this mode";
}

// Lost otherwise: a balloon that could never be deflated.
TEST_F(Deflate, TellHostFirstIsRefusedWhereTheHostCannotBackFrames) {
  boot();
  start_daemon();
  daemon().attach(kName, vm(), "uffd", {{"back_frames", true}});
  Agent agent(vm());
  agent.mount("deflate=tell-host-first,target=100M");
  EXPECT_TRUE(wait_for("the agent says why", [&] {
    return vm().console_tail(400).find("--refault kernel") != std::string::npos;
  }));
  EXPECT_EQ(agent.resident(), Bytes(0));
}

}  // namespace
}  // namespace fileballoon
