// balloonfs on this machine's own kernel, with a host that only acknowledges: residency, pins,
// floor, targets, the channel, and the death of every process. (This kernel may take balloon pages
// by itself at any time, DAMON for one, so sizes are compared with a little room.)
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "guest-fs/options.h"
#include "guest-fs/preflight.h"
#include "tests/eventually.h"
#include "tests/integration/balloonfs_mount.h"
#include "tests/integration/fake_host.h"

namespace fileballoon::test {
namespace {

class Balloonfs : public BalloonfsTest {
 protected:
  [[nodiscard]] bool resident(long low_mib, long high_mib) {
    return eventually([&] {
      const long bytes = mount_.number("resident_bytes");
      return bytes >= low_mib * kMib && bytes <= high_mib * kMib;
    });
  }

  FakeHost host_{mount_.socket()};
};

/// What concerns the pages themselves holds for both kinds of them.
class BalloonfsPages : public Balloonfs, public ::testing::WithParamInterface<const char*> {
 protected:
  [[nodiscard]] std::string channel() const { return mount_.channel() + ",pages=" + GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(, BalloonfsPages, ::testing::Values("auto", "small"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(BalloonfsPages, InflatesToTheHostsTargetAndReportsEveryPageOnce) {
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(resident(62, 64));
  // What is on its way counts as resident, so the last reports may still come.
  EXPECT_TRUE(eventually([&] { return host_.reported_pages() >= Bytes::mib(62).whole_pages(); }));
  EXPECT_LE(host_.reported_pages(), Bytes::mib(66).whole_pages());
  // Frames are real ones, no report names one twice, and neighbours are one range.
  auto ranges = host_.all_ranges();
  for (const FrameRange& range : ranges) {
    EXPECT_GT(range.first.number(), 0U);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const FrameRange& a, const FrameRange& b) { return a.first < b.first; });
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    EXPECT_GE(ranges[i].first, ranges[i - 1].end());
  }
  const wire::Hello hello = host_.hello();
  EXPECT_EQ(hello.page_size, kPageSize);
  EXPECT_FALSE(hello.ram.empty());
  EXPECT_NE(hello.boot_id, (std::array<std::uint8_t, 16>{}));
  EXPECT_TRUE(eventually([&] {
    return host_.last_stats().find(wire::StatKey::resident_pages).value_or(0) >=
           Bytes::mib(62).whole_pages();
  }));
}

TEST_P(BalloonfsPages, ALowerTargetDropsPagesAndZeroDropsAll) {
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(resident(62, 64));
  EXPECT_EQ(mount_.write("target", "16M\n"), 0);
  EXPECT_TRUE(resident(14, 16));
  host_.set_limits({Bytes(0), Bytes(0)});
  EXPECT_TRUE(resident(0, 0));
  EXPECT_GE(mount_.number("dropped_pages"), 60 * 256);
}

TEST_P(BalloonfsPages, WhatTheHostHasNotAcknowledgedIsPinnedAndBounded) {
  host_.answer_with(FakeHost::Answer::silence);
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(eventually([&] { return host_.unanswered() >= 2; }));
  // At most 8 MiB without an answer, and the agent goes on serving.
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LE(mount_.number("in_flight_bytes"), 8 * kMib);
  EXPECT_EQ(mount_.number("inflated_pages"), 0);
  // What evicts the rest must not move a pinned page.
  const long before = mount_.number("in_flight_bytes");
  mount_.evict();
  EXPECT_EQ(mount_.number("in_flight_bytes"), before);
  host_.answer_with(FakeHost::Answer::discarded);
  host_.answer_pending();
  EXPECT_TRUE(resident(60, 64));
}

TEST_P(BalloonfsPages, ABatchLostWithItsChannelIsCancelledAndItsPagesAreLetGo) {
  host_.answer_with(FakeHost::Answer::silence);
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(eventually([&] { return host_.unanswered() >= 2; }));
  host_.stop_listening();
  host_.hang_up();
  EXPECT_TRUE(resident(0, 0));  // nothing was acknowledged, so nothing is balloon
  EXPECT_GE(mount_.number("cancelled_pages"), 2 * 256);
  EXPECT_NE(mount_.stats().find("no session with a host"), std::string::npos);
  // And a host that comes back is found.
  host_.answer_with(FakeHost::Answer::discarded);
  host_.listen();
  EXPECT_TRUE(resident(62, 64));
  EXPECT_EQ(mount_.number("sessions"), 2);
}

TEST_P(BalloonfsPages, PagesThatTheHostSeesDataInAreNotKept) {
  host_.answer_with(FakeHost::Answer::not_zero);
  host_.set_limits({Bytes::mib(8), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(eventually([&] { return mount_.number("not_zero_pages") >= 256; }));
  EXPECT_EQ(mount_.number("inflated_pages"), 0);
  EXPECT_TRUE(resident(0, 4));
  host_.answer_with(FakeHost::Answer::refused);
  EXPECT_TRUE(eventually([&] { return mount_.number("refused_pages") >= 256; }));
  EXPECT_TRUE(resident(0, 4));
}

TEST_P(BalloonfsPages, TheFloorIsLockedAndSurvivesWhatTakesTheRest) {
  host_.set_limits({Bytes::mib(48), Bytes::mib(16)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(resident(46, 48));
  EXPECT_EQ(mount_.number("locked_bytes"), 16 * kMib);
  mount_.evict();
  EXPECT_TRUE(eventually([&] { return mount_.number("evicted_pages") > 16 * 256; }));
  EXPECT_EQ(mount_.number("locked_bytes"), 16 * kMib);
  // It backs off, says so, and comes back by itself.
  EXPECT_NE(mount_.stats().find("backing off after reclaim"), std::string::npos);
  EXPECT_TRUE(resident(46, 48));
  // A floor that falls frees its lock, one that rises takes from the rest.
  EXPECT_EQ(mount_.write("floor", "4M"), 0);
  EXPECT_TRUE(eventually([&] { return mount_.number("locked_bytes") == 4 * kMib; }));
  EXPECT_EQ(mount_.write("floor", "32M"), 0);
  EXPECT_TRUE(eventually([&] { return mount_.number("locked_bytes") == 32 * kMib; }));
  EXPECT_TRUE(resident(46, 48));
}

TEST_P(BalloonfsPages, ATargetInsideAFolioIsMetToThePage) {
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(channel()));
  ASSERT_TRUE(resident(62, 64));
  const long target = 31 * kMib + 12 * 4096;
  EXPECT_EQ(mount_.write("target", std::to_string(target)), 0);
  EXPECT_TRUE(eventually([&] {
    const long bytes = mount_.number("resident_bytes");
    return bytes <= target && bytes >= target - kMib;
  }));
}

TEST_F(Balloonfs, FoliosArriveAsOneRangeEach) {
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(resident(62, 64));
  if (mount_.stats().find(R"("pages": "4K")") != std::string::npos) {
    // The reason is shown where a user looks for it; the balloon works all the same.
    EXPECT_EQ(mount_.stats().find(R"("pages_note": "")"), std::string::npos);
    GTEST_SKIP() << "this kernel gives no large pages: " << mount_.stats();
  }
  std::uint64_t whole = 0;
  for (const FrameRange& range : host_.all_ranges()) {
    whole += range.first.number() % 512 == 0 && range.count % 512 == 0 ? range.count : 0;
  }
  // This machine's memory may be too fragmented for all of them.
  EXPECT_GE(whole, Bytes::mib(32).whole_pages());
}

TEST_F(Balloonfs, SmallPagesAreUsedWhereAskedFor) {
  host_.set_limits({Bytes::mib(8), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel() + ",pages=small"));
  ASSERT_TRUE(resident(7, 8));
  EXPECT_NE(mount_.stats().find(R"("pages": "4K", "pages_note": "pages=small")"), std::string::npos)
      << mount_.stats();
}

TEST_F(Balloonfs, GarbageOnTheChannelEndsTheSessionAndNothingElse) {
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(resident(15, 16));
  host_.send_raw(std::string(100, 'x'));
  EXPECT_TRUE(eventually([&] { return host_.sessions() == 2; }));
  EXPECT_NE(mount_.output().find("not the protocol"), std::string::npos);
  EXPECT_TRUE(resident(14, 16));
}

TEST_F(Balloonfs, BadSizesAreRefusedAndSaidWhy) {
  ASSERT_TRUE(mount_.start(mount_.channel() + ",target=16M"));
  EXPECT_EQ(mount_.write("target", "lots"), EINVAL);
  EXPECT_EQ(mount_.write("target", "99999T"), EINVAL);
  EXPECT_EQ(mount_.write("floor", "17M"), EINVAL);  // above the target
  EXPECT_NE(mount_.output().find("bad size 'lots'"), std::string::npos);
  EXPECT_NE(mount_.output().find("floor 17 MiB is above the target"), std::string::npos);
  EXPECT_EQ(mount_.number("target_bytes"), 16 * kMib);
  std::ifstream target(mount_.file("target"));
  std::string text;
  std::getline(target, text);
  EXPECT_EQ(text, std::to_string(16 * kMib));
}

TEST_F(Balloonfs, OnlyTheAgentOpensTheBalloon) {
  ASSERT_TRUE(mount_.start(mount_.channel()));
  EXPECT_LT(::open(mount_.file("balloon").c_str(), O_RDONLY | O_CLOEXEC), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(mount_.write("stats", "x"), EPERM);
  struct stat status {};
  ASSERT_EQ(::stat(mount_.file("balloon").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0400U);
}

TEST_F(Balloonfs, SigtermEmptiesAndUnmounts) {
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(resident(15, 16));
  EXPECT_EQ(mount_.stop(), 0);
  EXPECT_FALSE(mount_.is_mounted());
}

// Lost otherwise: what the guest writes to a frame that it uses again while the host is between
// looking at it and discarding it.
TEST_F(Balloonfs, BeforeItEndsItWaitsForTheAnswerToWhatItHasTold) {
  host_.answer_with(FakeHost::Answer::silence);
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(eventually([&] { return host_.unanswered() >= 2; }));
  ASSERT_EQ(::kill(mount_.pid(), SIGTERM), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_NE(mount_.child("balloonfs-infl"), 0) << "it has let go of pages that are being discarded";
  host_.answer_pending();
  EXPECT_EQ(mount_.wait_end(10), 0);
}

TEST_F(Balloonfs, UmountEndsTheAgent) {
  host_.set_limits({Bytes::mib(16), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(resident(15, 16));
  EXPECT_EQ(::umount2(mount_.mount_point().c_str(), 0), 0) << "busy: " << std::strerror(errno);
  EXPECT_EQ(mount_.wait_end(10), 0);
}

TEST_F(Balloonfs, KillingAnyProcessTakesEverythingDownAndANewMountStartsClean) {
  for (const std::string victim : {"balloonfs-infl", "balloonfs-read", "balloonfs"}) {
    SCOPED_TRACE(victim);
    host_.set_limits({Bytes::mib(256), Bytes(0)});
    ASSERT_TRUE(mount_.start(mount_.channel()));
    ASSERT_TRUE(eventually([&] { return mount_.number("resident_bytes") > 8 * kMib; }));
    const pid_t pid = victim == "balloonfs" ? mount_.pid() : mount_.child(victim);
    const pid_t inflater = mount_.child("balloonfs-infl");
    ASSERT_GT(pid, 0);
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    EXPECT_EQ(mount_.wait_end(15), victim == "balloonfs" ? 128 + SIGKILL : 1);
    EXPECT_TRUE(eventually([&] { return ::kill(inflater, 0) != 0; }));
    EXPECT_TRUE(eventually([&] { return !mount_.is_mounted(); }));
  }
  ASSERT_TRUE(mount_.start(mount_.channel()));
  EXPECT_TRUE(resident(250, 256));
}

TEST_F(Balloonfs, ADeadMountIsDetachedByTheNextStart) {
  ASSERT_TRUE(mount_.start(mount_.channel()));
  const pid_t inflater = mount_.child("balloonfs-infl");
  ASSERT_GT(inflater, 0);
  // Both at once: stopped first, so that neither sees the other die.
  ::kill(inflater, SIGSTOP);
  ::kill(mount_.pid(), SIGKILL);
  ::kill(inflater, SIGKILL);
  EXPECT_EQ(mount_.wait_end(10), 128 + SIGKILL);
  struct statfs status {};
  ASSERT_NE(::statfs(mount_.mount_point().c_str(), &status), 0);
  ASSERT_EQ(errno, ENOTCONN);
  ASSERT_TRUE(mount_.start(mount_.channel()));
  EXPECT_NE(mount_.output().find("detaching the dead mount"), std::string::npos);
}

TEST_F(Balloonfs, MountHelperStartsADaemon) {
  // mount(8) passes a type fuse.balloonfs on to mount.fuse3, which runs balloonfs from the PATH.
  const std::string folder = std::filesystem::path(BALLOONFS_PROGRAM).parent_path();
  ::setenv("PATH", (folder + ":" + std::getenv("PATH")).c_str(), 1);
  host_.set_limits({Bytes::mib(8), Bytes(0)});
  const RunResult result =
      run_program({"mount.fuse3", "none", mount_.mount_point(), "-t", "fuse.balloonfs", "-o",
                   "nofail,noatime," + mount_.channel()});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_TRUE(mount_.is_mounted());
  EXPECT_TRUE(resident(7, 8));
  EXPECT_EQ(::umount2(mount_.mount_point().c_str(), 0), 0);
}

TEST_F(Balloonfs, StaysWithinItsMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is not the agent's";
#endif
  host_.set_limits({Bytes::mib(64), Bytes(0)});
  ASSERT_TRUE(mount_.start(mount_.channel()));
  ASSERT_TRUE(resident(62, 64));
  long kib = 0;
  for (const pid_t pid :
       {mount_.pid(), mount_.child("balloonfs-infl"), mount_.child("balloonfs-read")}) {
    std::ifstream rollup("/proc/" + std::to_string(pid) + "/smaps_rollup");
    for (std::string line; std::getline(rollup, line);) {
      kib += line.starts_with("Pss:") ? std::atol(line.c_str() + 4) : 0;
    }
  }
  EXPECT_GT(kib, 0);
  EXPECT_LE(kib, 8192);
}

// ------------------------------------------------------------------------------------- bad input

class BalloonfsRefuses : public Balloonfs {
 protected:
  void refuses(const std::string& options, const std::string& because) {
    EXPECT_FALSE(mount_.start(options));
    EXPECT_NE(mount_.output().find(because), std::string::npos) << mount_.output();
    EXPECT_FALSE(mount_.is_mounted());
  }
};

TEST_F(BalloonfsRefuses, NoChannelDevice) {
  refuses("channel=/dev/virtio-ports/no.such.port", "no channel device");
  EXPECT_NE(mount_.output().find("virtserialport"), std::string::npos);  // the QEMU option
}
TEST_F(BalloonfsRefuses, UnknownOption) { refuses("channle=unix:/x", "unknown option 'channle'"); }
TEST_F(BalloonfsRefuses, UnknownPages) {
  refuses(mount_.channel() + ",pages=huge", "option 'pages' is auto or small, not 'huge'");
}
TEST_F(BalloonfsRefuses, BadSize) { refuses(mount_.channel() + ",target=12Q", "option 'target'"); }
TEST_F(BalloonfsRefuses, FloorAboveTarget) {
  refuses(mount_.channel() + ",target=1M,floor=2M", "floor 2 MiB is above the target 1 MiB");
}
TEST_F(BalloonfsRefuses, MountPointInUse) {
  ASSERT_TRUE(mount_.start(mount_.channel()));
  const RunResult second =
      run_program({BALLOONFS_PROGRAM, mount_.mount_point(), "-f", "-o", mount_.channel()});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.output.find("is in use"), std::string::npos) << second.output;
}
TEST_F(BalloonfsRefuses, MountPointMissing) {
  const RunResult result = run_program(
      {BALLOONFS_PROGRAM, mount_.mount_point() + "/nowhere", "-f", "-o", mount_.channel()});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.output.find("does not exist; create it"), std::string::npos) << result.output;
}
TEST_F(BalloonfsRefuses, NotRoot) {
  const RunResult result =
      run_program({"setpriv", "--reuid=65534", "--clear-groups", BALLOONFS_PROGRAM,
                   mount_.mount_point(), "-f", "-o", mount_.channel()});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.output.find("must run as root"), std::string::npos) << result.output;
}
TEST_F(BalloonfsRefuses, NoFrameNumbers) {
  // Root without CAP_SYS_ADMIN sees every frame as 0.
  const RunResult result =
      run_program({"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin",
                   BALLOONFS_PROGRAM, mount_.mount_point(), "-f", "-o", mount_.channel()});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.output.find("shows no frame numbers"), std::string::npos) << result.output;
}
TEST_F(BalloonfsRefuses, NoFuse) {
  guest::PreflightPaths paths;
  paths.fuse_device = "/dev/no-fuse-here";
  const auto error = guest::preflight(mount_.mount_point(),
                                      guest::ChannelAddress::parse("unix:/x").value(), paths);
  ASSERT_TRUE(error);
  EXPECT_NE(error->message.find("no FUSE"), std::string::npos);
  EXPECT_NE(error->message.find("modprobe fuse"), std::string::npos);
}
TEST_F(BalloonfsRefuses, InitOnFreeIsAWarning) {
  guest::PreflightPaths paths;
  paths.command_line = mount_.mount_point() + "/cmdline";
  std::ofstream(paths.command_line) << "root=/dev/vda1 init_on_free=1 quiet\n";
  const auto warnings = guest::preflight_warnings(paths);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("init_on_free"), std::string::npos);
  std::ofstream(paths.command_line) << "root=/dev/vda1 init_on_alloc=1\n";
  EXPECT_TRUE(guest::preflight_warnings(paths).empty());
}

}  // namespace
}  // namespace fileballoon::test
