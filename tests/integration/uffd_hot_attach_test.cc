// Attaching to a running VMM. If these failed, attaching would crash or stall a user's guest, or
// leave it without an answer to its faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/eventually.h"
#include "tests/integration/uffd_stand_in.h"
#include "uffd/fault_engine.h"
#include "uffd/guarded_discard.h"
#include "uffd/hot_attach.h"
#include "uffd/tracee.h"

namespace fileballoon {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::StandIn;
using namespace std::chrono_literals;

constexpr UffdFeatures kNeeded =
    UffdFeature::missing_shmem | UffdFeature::wp_hugetlbfs_shmem | UffdFeature::pagefault_wp;

// Everything that stands between an attached process and an answered fault.
struct Attached {
  explicit Attached(pid_t pid, unsigned shards = 1,
                    WatchedRam::Options options = WatchedRam::Options{})
      : guest(GuestRam::open(pid).value()) {
    auto uffds = hot_attach_negotiated(guest.process(), shards, kNeeded).value();
    ram = WatchedRam::create(WatchedRam::objects_of(guest), std::move(uffds), options).value();
    engine = std::make_unique<FaultEngine>(*ram, FaultEngine::Options{});
    discarder = std::make_unique<GuardedDiscarder>(*ram);
  }
  GuestRam guest;
  std::unique_ptr<WatchedRam> ram;
  std::unique_ptr<FaultEngine> engine;
  std::unique_ptr<GuardedDiscarder> discarder;
};

TEST(HotAttach, OneHundredTimesWithoutDisturbingAnyThread) {
  StandIn vmm;
  const std::string fds = vmm.ask("fds");
  const Process process = inspect_process(vmm.pid()).value();
  std::vector<double> stopped_us;
  for (int i = 0; i < 100; ++i) {
    auto attachment = hot_attach(process, 2);
    ASSERT_TRUE(attachment.has_value()) << attachment.error().message;
    ASSERT_EQ(attachment->descriptors.size(), 2U);
    stopped_us.push_back(std::chrono::duration<double, std::micro>(attachment->stopped).count());
    ::kill(vmm.pid(), SIGUSR1);
    std::this_thread::sleep_for(2ms);
  }
  std::sort(stopped_us.begin(), stopped_us.end());
  // Of one in ten attaches, at least, the time is its own and not that of others on these CPUs.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(stopped_us[10], 1000.0);
#endif
  RecordProperty("stopped_p10_us", std::to_string(stopped_us[10]));
  RecordProperty("stopped_p50_us", std::to_string(stopped_us[50]));
  RecordProperty("stopped_max_us", std::to_string(stopped_us.back()));
  EXPECT_EQ(vmm.ask("errors"), "0");
  EXPECT_GE(std::stoi(vmm.ask("signals")), 1);
  EXPECT_EQ(vmm.ask("fds"), fds) << "descriptors were left behind in the VMM";
}

TEST(HotAttach, EveryThreadCanBeStoppedAnywhere) {
  StandIn vmm;
  const Process process = inspect_process(vmm.pid()).value();
  const std::filesystem::path tasks = "/proc/" + std::to_string(vmm.pid()) + "/task";
  int calls = 0;
  for (int round = 0; round < 40; ++round) {
    for (const auto& task : std::filesystem::directory_iterator(tasks)) {
      const pid_t tid = std::stoi(task.path().filename());
      auto tracee = Tracee::stop(process, tid, 500ms);
      ASSERT_TRUE(tracee.has_value()) << tracee.error().message;
      if (tracee->in_restartable_sequence()) {
        continue;
      }
      const auto instruction = tracee->find_instruction();
      ASSERT_TRUE(instruction.has_value());
      const auto answer = tracee->call(*instruction, SYS_gettid, {});
      ASSERT_TRUE(answer.has_value()) << answer.error().message;
      EXPECT_EQ(*answer, tid);
      EXPECT_TRUE(tracee->release());
      ++calls;
    }
    ::kill(vmm.pid(), SIGUSR1);
  }
  EXPECT_GE(calls, 200);
  const auto before = std::stoull(vmm.ask("progress"));
  std::this_thread::sleep_for(100ms);
  EXPECT_GT(std::stoull(vmm.ask("progress")), before) << "its threads no longer run";
  EXPECT_EQ(vmm.ask("errors"), "0");
}

TEST(HotAttach, AStoppedProcessStaysStoppedAndGoesOnLater) {
  StandIn vmm;
  ::kill(vmm.pid(), SIGSTOP);
  ::waitpid(vmm.pid(), nullptr, WUNTRACED);
  const Process process = inspect_process(vmm.pid()).value();
  auto attachment = hot_attach(process);
  ASSERT_TRUE(attachment.has_value()) << attachment.error().message;
  std::this_thread::sleep_for(20ms);
  std::ifstream status("/proc/" + std::to_string(vmm.pid()) + "/status");
  const std::string text{std::istreambuf_iterator<char>(status), {}};
  EXPECT_THAT(text, HasSubstr("T (stopped)"));
  ::kill(vmm.pid(), SIGCONT);
  EXPECT_EQ(vmm.ask("fill 0 16"), "ok");
}

// A cgroup of its own (v2) for one process; gone with this.
class Freezer {
 public:
  explicit Freezer(pid_t pid) {
    std::ifstream mounts("/proc/self/mounts");
    std::string where;
    for (std::string device, folder, type, rest;
         mounts >> device >> folder >> type && std::getline(mounts, rest);) {
      where = type == "cgroup2" ? folder : where;
    }
    folder_ = where + "/fileballoon-test-" + std::to_string(::getpid());
    usable_ = !where.empty() && ::mkdir(folder_.c_str(), 0755) == 0 &&
              write("cgroup.procs", std::to_string(pid));
  }
  Freezer(const Freezer&) = delete;
  Freezer& operator=(const Freezer&) = delete;
  ~Freezer() {
    (void)write("cgroup.freeze", "0");
    (void)eventually([&] { return ::rmdir(folder_.c_str()) == 0 || errno != EBUSY; }, 2s);
  }
  [[nodiscard]] bool usable() const { return usable_; }
  [[nodiscard]] bool freeze() {
    if (!write("cgroup.freeze", "1")) {
      return false;
    }
    return eventually([&] {
      std::ifstream in(folder_ + "/cgroup.events");
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      return text.find("frozen 1") != std::string::npos;
    });
  }
  [[nodiscard]] bool thaw() { return write("cgroup.freeze", "0"); }

 private:
  [[nodiscard]] bool write(const std::string& file, const std::string& text) {
    std::ofstream out(folder_ + "/" + file);
    out << text << std::flush;
    return out.good();
  }
  std::string folder_;
  bool usable_ = false;
};

// Of all its threads: the signals that each blocks.
std::string blocked_signals(pid_t pid) {
  std::string blocked;
  const std::filesystem::path tasks = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::ifstream status(task.path() / "status");
    for (std::string line; std::getline(status, line);) {
      blocked += line.starts_with("SigBlk:") ? line + "\n" : "";
    }
  }
  return blocked;
}

TEST(HotAttach, AFrozenProcessIsRefusedAndGoesOnAsItWas) {
  StandIn vmm({"--quiet"});  // freezing alone makes the epoll_wait() of its threads return EINTR
  auto freezer = std::make_unique<Freezer>(vmm.pid());
  if (!freezer->usable()) {
    GTEST_SKIP() << "no cgroup v2 can be made here";
  }
  const std::string fds = vmm.ask("fds");
  const std::string blocked = blocked_signals(vmm.pid());
  const Process process = inspect_process(vmm.pid()).value();
  ASSERT_TRUE(freezer->freeze());
  const auto attachment = hot_attach(process);
  ASSERT_TRUE(attachment.has_error());
  EXPECT_THAT(attachment.error().message, HasSubstr("its cgroup is frozen"));
  ASSERT_TRUE(freezer->thaw());
  EXPECT_EQ(vmm.ask("fill 0 16"), "ok");
  EXPECT_EQ(blocked_signals(vmm.pid()), blocked);
  EXPECT_EQ(vmm.ask("fds"), fds);
  EXPECT_EQ(vmm.ask("errors"), "0");
  EXPECT_TRUE(hot_attach(process).has_value()) << "once it runs it can be attached";
  EXPECT_EQ(vmm.ask("check 0 16"), "0");
  vmm.kill_and_wait();
}

TEST(HotAttach, FaultsAreAnsweredAndDataIsKept) {
  for (const unsigned shards : {1U, 3U}) {
    StandIn vmm;
    ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
    ASSERT_EQ(vmm.ask("zero 1000 8000"), "ok");
    Attached attached(vmm.pid(), shards);
    const DiscardOutcome outcome = attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)});
    EXPECT_EQ(outcome.discarded, 8000U);
    EXPECT_EQ(outcome.not_zero, 8384U);
    EXPECT_EQ(attached.guest.footprint(), Bytes::pages(8384));
    EXPECT_EQ(vmm.ask("check 0 1000"), "0");
    EXPECT_EQ(vmm.ask("fill 1000 8000"), "ok");
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    // The thread that waited is woken inside the call that fills; the book follows a moment later.
    EXPECT_TRUE(eventually([&] { return attached.engine->stats().pages_filled >= 8000; }));
    const EngineStats stats = attached.engine->stats();
    EXPECT_LT(stats.missing_faults, 500U) << "ranges, not pages";
    std::uint64_t reported = 0;
    EXPECT_TRUE(
        attached.engine->drain([&](std::uint32_t, HostRange range) { reported += range.pages(); }));
    EXPECT_EQ(reported, attached.engine->refaulted_pages());
    EXPECT_EQ(vmm.ask("errors"), "0");
  }
}

TEST(HotAttach, FaultsBecomeTheKernelsWhenTheHolderGoes) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 4096"), "ok");
  {
    Attached attached(vmm.pid());
    EXPECT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(16)}).discarded, 4096U);
    attached.engine.reset();  // nobody answers now …
    vmm.send("fill 0 4096");  // … and a thread waits
    std::this_thread::sleep_for(50ms);
  }  // the descriptor is closed
  EXPECT_EQ(vmm.read_line(), "ok");
  EXPECT_EQ(vmm.ask("check 0 4096"), "0");
}

TEST(HotAttach, AVmmThatUnmapsItsRamIsNotHurtAndNotDiscarded) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  ASSERT_EQ(vmm.ask("unmap 8192 512"), "ok");
  const DiscardOutcome gone =
      attached.discarder->discard(0, {HostOffset(8192 * kPageSize), Bytes::pages(512)});
  EXPECT_EQ(gone.discarded, 0U);
  EXPECT_EQ(gone.failed, 512U);
  EXPECT_TRUE(attached.ram->lost(0));
  EXPECT_EQ(vmm.ask("fill 0 8192"), "ok");
  EXPECT_EQ(vmm.ask("check 0 8192"), "0");
}

TEST(HotAttach, AVmmThatRemapsItsRamKeepsItsData) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  EXPECT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(8)}).discarded, 2048U);
  ASSERT_EQ(vmm.ask("remap"), "ok");
  EXPECT_EQ(vmm.ask("fill 0 4096"), "ok");
  const DiscardOutcome after = attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)});
  EXPECT_EQ(after.discarded, 0U) << "where it lies now, writes are not trapped";
  EXPECT_EQ(vmm.ask("check 0 4096"), "0");
}

TEST(HotAttach, AVmmThatDiesWhileAttachedEndsTheService) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  vmm.kill_and_wait();
  EXPECT_FALSE(attached.guest.process().alive());
  const DiscardOutcome outcome = attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)});
  EXPECT_EQ(outcome.discarded, 0U);
  EXPECT_EQ(outcome.failed, 16384U);
}

TEST(HotAttach, RamOnTmpfsWorks) {
  const std::string path = "/dev/shm/fileballoon-test-" + std::to_string(::getpid());
  StandIn vmm({"--ram", path});
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  EXPECT_EQ(attached.guest.backings()[0].kind, Backing::Kind::tmpfs_file);
  EXPECT_EQ(attached.guest.backings()[0].name, path);
  EXPECT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)}).discarded, 16384U);
  EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
  ::unlink(path.c_str());
}

TEST(HotAttach, RamOnHugePagesWorks) {
  StandIn vmm;
  ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
  // Part of each of four huge pages, one whole one, and parts of two that meet.
  const std::vector<std::pair<unsigned, unsigned>> zeroed = {
      {10, 1}, {600, 300}, {1536, 512}, {3000, 200}};
  for (const auto& [first, count] : zeroed) {
    ASSERT_EQ(vmm.ask("zero " + std::to_string(first) + " " + std::to_string(count)), "ok");
  }
  if (const std::string collapsed = vmm.ask("collapse 0 16384"); collapsed != "ok") {
    GTEST_SKIP() << "this kernel makes no huge pages of shared memory: " << collapsed;
  }
  for (const RefaultMode mode : {RefaultMode::engine, RefaultMode::kernel}) {
    WatchedRam::Options options;
    options.mode = mode;
    Attached attached(vmm.pid(), 2, options);
    const DiscardOutcome outcome = attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)});
    EXPECT_EQ(outcome.not_zero, 16384U - 1013U);
    EXPECT_EQ(outcome.discarded + outcome.failed, 1013U);
    EXPECT_EQ(attached.guest.footprint(), Bytes::pages(16384 - outcome.discarded))
        << "what counts as discarded is gone, and nothing else";
    for (const auto& [first, count] : zeroed) {
      EXPECT_EQ(vmm.ask("fill " + std::to_string(first) + " " + std::to_string(count)), "ok");
    }
    EXPECT_EQ(vmm.ask("check 0 16384"), "0");
    for (const auto& [first, count] : zeroed) {
      ASSERT_EQ(vmm.ask("zero " + std::to_string(first) + " " + std::to_string(count)), "ok");
    }
  }
}

TEST(HotAttach, ENOMEMWhileFillingWaitsAndLosesNothing) {
  char dir[] = "/tmp/fileballoon-tmpfs-XXXXXX";
  ASSERT_NE(::mkdtemp(dir), nullptr);
  if (::mount("tmpfs", dir, "tmpfs", 0, "size=24m,huge=never") != 0) {
    ::rmdir(dir);
    GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
  }
  {
    StandIn vmm({"--ram", std::string(dir) + "/ram", "--mib", "16"});
    ASSERT_EQ(vmm.ask("zero 0 4096"), "ok");
    Attached attached(vmm.pid());
    ASSERT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(16)}).discarded, 4096U);
    // Someone else takes the memory.
    const std::string hog = std::string(dir) + "/hog";
    const UniqueFd fd(::open(hog.c_str(), O_RDWR | O_CREAT, 0600));
    ASSERT_EQ(::fallocate(fd.get(), 0, 0, 20 << 20), 0);
    vmm.send("fill 0 4096");
    EXPECT_TRUE(eventually([&] { return attached.engine->stats().no_memory > 0; }));
    ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
    EXPECT_EQ(vmm.read_line(), "ok");
    EXPECT_EQ(vmm.ask("check 0 4096"), "0");
  }
  ::umount2(dir, MNT_DETACH);
  ::rmdir(dir);
}

// What is refused, and how.

std::string attach_error(pid_t pid) {
  auto process = inspect_process(pid);
  if (process.has_error()) {
    return process.error().message;
  }
  auto attachment = hot_attach(*process);
  return attachment.has_error() ? attachment.error().message : "attached";
}

TEST(HotAttachRefuses, APidThatIsGone) {
  StandIn vmm({"--quiet"});
  const pid_t pid = vmm.pid();
  const Process process = inspect_process(pid).value();
  vmm.kill_and_wait();
  EXPECT_THAT(attach_error(pid), HasSubstr("does not exist"));
  EXPECT_THAT(hot_attach(process).error().message, HasSubstr("has exited"));
  EXPECT_THAT(attach_error(0), HasSubstr("positive number"));
}

// At any moment of it: the attach ends with an error that says so, and nothing is left hanging.
TEST(HotAttachRefuses, AProcessThatDiesMeanwhile) {
  int refused = 0;
  for (int i = 0; i < 25; ++i) {
    StandIn vmm({"--quiet"});
    const Process process = inspect_process(vmm.pid()).value();
    std::thread killer([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(20 * i));
      ::kill(vmm.pid(), SIGKILL);
    });
    const auto attachment = hot_attach(process);
    killer.join();
    if (attachment.has_error()) {
      EXPECT_THAT(attachment.error().message, AnyOf(HasSubstr("has exited"), HasSubstr(" died ")));
      ++refused;
    }
  }
  EXPECT_GT(refused, 0) << "it was always too late; this shows nothing";
}

TEST(HotAttachRefuses, AKernelThread) { EXPECT_THAT(attach_error(2), HasSubstr("kernel thread")); }

TEST(HotAttachRefuses, AThreadsId) {
  StandIn vmm;
  pid_t other = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(vmm.pid()) + "/task")) {
    const pid_t tid = std::stoi(task.path().filename());
    other = tid != vmm.pid() ? tid : other;
  }
  EXPECT_THAT(attach_error(other), HasSubstr("thread of another process"));
}

TEST(HotAttachRefuses, AProcessUnderADebugger) {
  StandIn vmm;
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, vmm.pid(), nullptr, nullptr), 0);
  EXPECT_THAT(attach_error(vmm.pid()), HasSubstr("is being traced by pid"));
  ASSERT_EQ(::ptrace(PTRACE_INTERRUPT, vmm.pid(), nullptr, nullptr), 0);
  ::waitpid(vmm.pid(), nullptr, __WALL);
  ::ptrace(PTRACE_DETACH, vmm.pid(), nullptr, nullptr);
}

TEST(HotAttachRefuses, ASandboxThatWouldKillItAndItLives) {
  StandIn vmm({"--sandbox"});
  EXPECT_THAT(attach_error(vmm.pid()), HasSubstr("seccomp filter forbids userfaultfd(2)"));
  EXPECT_EQ(vmm.ask("errors"), "0");
}

// A VMM without privileges, as libvirt runs QEMU. The system call is forbidden to it unless
// vm.unprivileged_userfaultfd is 1.
TEST(HotAttach, AnUnprivilegedVmmIsAttachedThroughTheDevice) {
  if (::access("/dev/userfaultfd", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no /dev/userfaultfd";
  }
  StandIn vmm({"--nobody", "666"});
  const std::string fds = vmm.ask("fds");
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  EXPECT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)}).discarded, 16384U);
  EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
  EXPECT_EQ(vmm.ask("fds"), fds);
  EXPECT_EQ(vmm.ask("errors"), "0");
}

TEST(HotAttach, ASandboxThatAllowsTheDeviceIsNoObstacle) {
  if (::access("/dev/userfaultfd", R_OK | W_OK) != 0) {
    GTEST_SKIP() << "this kernel has no /dev/userfaultfd";
  }
  StandIn vmm({"--sandbox-with-files"});
  ASSERT_EQ(vmm.ask("zero 0 16384"), "ok");
  Attached attached(vmm.pid());
  EXPECT_EQ(attached.discarder->discard(0, {HostOffset(0), Bytes::mib(64)}).discarded, 16384U);
  EXPECT_EQ(vmm.ask("fill 0 16384"), "ok");
  EXPECT_EQ(vmm.ask("check 0 16384"), "0");
  EXPECT_EQ(vmm.ask("errors"), "0");
}

TEST(HotAttachRefuses, AVmmThatMayNeitherOpenTheDeviceNorMakeTheCall) {
  std::ifstream sysctl("/proc/sys/vm/unprivileged_userfaultfd");
  int unprivileged = 1;
  sysctl >> unprivileged;
  if (unprivileged != 0 || ::access("/dev/userfaultfd", F_OK) != 0) {
    GTEST_SKIP() << "every process may make a userfaultfd here, or there is no device for it";
  }
  StandIn vmm({"--nobody", "600"});
  EXPECT_THAT(attach_error(vmm.pid()),
              AllOf(HasSubstr("/dev/userfaultfd: Permission denied, userfaultfd(2): Operation not "
                              "permitted"),
                    HasSubstr("vm.unprivileged_userfaultfd=1"), HasSubstr("/dev/userfaultfd,")));
  EXPECT_EQ(vmm.ask("errors"), "0");
}

TEST(HotAttachRefuses, AnotherUsersProcess) {
  StandIn vmm;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) {
      ::_exit(2);
    }
    const std::string error = attach_error(vmm.pid());
    ::_exit(error.find("belongs to uid 0") != std::string::npos ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(HotAttachRefuses, A32BitProgram) {
  // A 32-bit program that needs no libraries: pause(2) for ever.
  const unsigned char code[] = {
      0x7f, 'E',  'L',  'F',  1,    1,    1,    0,    0,    0,
      0,    0,    0,    0,    0,    0,  // ELF32
      2,    0,    3,    0,    1,    0,    0,    0,    0x54, 0x80,
      0x04, 0x08, 0x34, 0,    0,    0,  // i386, entry
      0,    0,    0,    0,    0,    0,    0,    0,    0x34, 0,
      0x20, 0,    1,    0,    0,    0,    0,    0,    0,    0,  // one segment
      1,    0,    0,    0,    0,    0,    0,    0,    0,    0x80,
      0x04, 0x08, 0,    0x80, 0x04, 0x08,  // PT_LOAD
      0x5d, 0,    0,    0,    0x5d, 0,    0,    0,    5,    0,
      0,    0,    0,    0x10, 0,    0,                        //
      0xb8, 29,   0,    0,    0,    0xcd, 0x80, 0xeb, 0xf7};  // pause; loop
  char path[] = "/tmp/fileballoon-elf32-XXXXXX";
  UniqueFd fd(::mkstemp(path));
  ASSERT_EQ(::write(fd.get(), code, sizeof code), static_cast<ssize_t>(sizeof code));
  ::fchmod(fd.get(), 0700);
  fd.reset();
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(path, path, nullptr);
    ::_exit(1);
  }
  std::this_thread::sleep_for(50ms);
  const bool runs = ::waitpid(child, nullptr, WNOHANG) == 0;
  ::unlink(path);
  if (!runs) {
    GTEST_SKIP() << "this kernel does not run 32-bit programs";
  }
  EXPECT_THAT(attach_error(child), HasSubstr("32-bit"));
  EXPECT_EQ(::waitpid(child, nullptr, WNOHANG), 0) << "it must go on";
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

std::string ram_error(pid_t pid) {
  const auto ram = GuestRam::open(pid);
  return ram.has_error() ? ram.error().message : "opened";
}

TEST(GuestRamRefuses, PrivateMemoryWithTheRemedy) {
  StandIn vmm({"--ram", "private", "--quiet"});
  EXPECT_THAT(ram_error(vmm.pid()),
              HasSubstr("-object memory-backend-memfd,id=ram0,size=64M,share=on "
                        "-machine memory-backend=ram0"));
}

TEST(GuestRamRefuses, AProcessThatIsNoVmm) {
  StandIn vmm({"--ram", "none", "--quiet"});
  EXPECT_THAT(ram_error(vmm.pid()), HasSubstr("is not a VMM"));
}

TEST(GuestRamRefuses, AFileOnDiskByName) {
  const std::string path = "/var/tmp/fileballoon-ram-" + std::to_string(::getpid());
  StandIn vmm({"--ram", path, "--quiet"});
  const std::string error = ram_error(vmm.pid());
  ::unlink(path.c_str());
  EXPECT_THAT(error, HasSubstr("disk file system"));
}

TEST(GuestRamRefuses, HugetlbfsByName) {
  std::ifstream in("/proc/sys/vm/nr_hugepages");
  int before = 0;
  in >> before;
  std::ofstream("/proc/sys/vm/nr_hugepages") << before + 16;
  std::ifstream check("/proc/sys/vm/nr_hugepages");
  int now = 0;
  check >> now;
  if (now < before + 16) {
    std::ofstream("/proc/sys/vm/nr_hugepages") << before;
    GTEST_SKIP() << "no 32 MiB of huge pages to be had";
  }
  {
    StandIn vmm({"--ram", "hugetlb", "--mib", "32", "--quiet"});
    EXPECT_THAT(ram_error(vmm.pid()), HasSubstr("hugetlbfs"));
  }
  std::ofstream("/proc/sys/vm/nr_hugepages") << before;
}

TEST(GuestRamFinds, ASmallMemfdIsNotRam) {
  StandIn vmm({"--mib", "4", "--quiet"});
  EXPECT_THAT(ram_error(vmm.pid()), HasSubstr("is not a VMM"));
  GuestRam::Options options;
  options.min_size = Bytes::mib(2);
  EXPECT_TRUE(GuestRam::open(vmm.pid(), options).has_value());
}

}  // namespace
}  // namespace fileballoon
