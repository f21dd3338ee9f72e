// Hot attach to the real thing: an unmodified QEMU that runs its firmware. If this failed,
// `--refault uffd` would not work for any user of QEMU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "uffd/fault_engine.h"
#include "uffd/guarded_discard.h"
#include "uffd/hot_attach.h"

namespace fileballoon {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

class Qemu {
 public:
  explicit Qemu(std::vector<std::string> arguments) {
    std::vector<std::string> all = {
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel",
        "tcg,thread=multi",   "-smp",        "2",        "-m",   "256"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& argument : all) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    std::this_thread::sleep_for(1500ms);  // the firmware is at work by then
  }
  Qemu(const Qemu&) = delete;
  Qemu& operator=(const Qemu&) = delete;
  ~Qemu() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// 127: there is no QEMU here.
  [[nodiscard]] bool runs() {
    int status = 0;
    const bool ended = ::waitpid(pid_, &status, WNOHANG) == pid_;
    if (ended) {
      pid_ = -1;
    }
    return !ended;
  }

 private:
  pid_t pid_ = -1;
};

const std::vector<std::string> kShared = {"-object",
                                          "memory-backend-memfd,id=ram0,size=256M,share=on",
                                          "-machine", "q35,memory-backend=ram0"};

TEST(QemuAttach, FirmwareRunsOnWhileItsRamIsDiscardedAndRefaulted) {
  Qemu qemu(kShared);
  if (!qemu.runs()) {
    GTEST_SKIP() << "qemu-system-x86_64 does not start here";
  }
  GuestRam guest = GuestRam::open(qemu.pid()).value();
  ASSERT_EQ(guest.backings().size(), 1U);
  EXPECT_EQ(guest.backings()[0].size, Bytes::mib(256));
  EXPECT_EQ(guest.backings()[0].kind, Backing::Kind::memfd);
  auto attachment = hot_attach(guest.process(), 1);
  ASSERT_TRUE(attachment.has_value()) << attachment.error().message;
  RecordProperty("stopped_us", std::to_string(attachment->stopped.count() / 1000));
  std::vector<Userfaultfd> shards;
  shards.push_back(Userfaultfd::negotiate(std::move(attachment->descriptors[0]),
                                          UffdFeature::missing_shmem |
                                              UffdFeature::wp_hugetlbfs_shmem |
                                              UffdFeature::pagefault_wp)
                       .value());
  auto ram =
      WatchedRam::create(WatchedRam::objects_of(guest), std::move(shards), WatchedRam::Options{})
          .value();
  FaultEngine engine(*ram, {});
  GuardedDiscarder discarder(*ram);
  DiscardOutcome sum;
  for (int i = 0; i < 20; ++i) {
    sum += discarder.discard(0, {HostOffset(0), Bytes::mib(256)});
    std::this_thread::sleep_for(50ms);
  }
  EXPECT_GT(sum.discarded, 0U);
  EXPECT_EQ(sum.failed, 0U);
  EXPECT_TRUE(engine.serving());
  EXPECT_TRUE(qemu.runs());
}

TEST(QemuAttach, PrivateRamIsRefusedWithTheOptions) {
  Qemu qemu({"-machine", "q35"});
  if (!qemu.runs()) {
    GTEST_SKIP() << "qemu-system-x86_64 does not start here";
  }
  const auto ram = GuestRam::open(qemu.pid());
  ASSERT_TRUE(ram.has_error());
  EXPECT_THAT(ram.error().message, HasSubstr("-machine memory-backend=ram0"));
}

TEST(QemuAttach, ItsSandboxIsJudgedBeforeItIsTouched) {
  std::vector<std::string> arguments = kShared;
  arguments.insert(arguments.end(), {"-sandbox", "on"});
  Qemu qemu(arguments);
  if (!qemu.runs()) {
    GTEST_SKIP() << "qemu-system-x86_64 -sandbox on does not start here";
  }
  const auto attachment = hot_attach(inspect_process(qemu.pid()).value());
  if (attachment.has_error()) {
    EXPECT_THAT(attachment.error().message, HasSubstr("seccomp filter"));
  }
  EXPECT_TRUE(qemu.runs()) << "either way it must live";
  RecordProperty("attached", attachment.has_value() ? "yes" : "no");
}

}  // namespace
}  // namespace fileballoon
