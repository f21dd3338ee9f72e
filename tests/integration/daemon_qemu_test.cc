// Attaching to a real QEMU (paused, no guest inside): is the layout that the daemon works out the
// one that QEMU really uses? A mark is written at the translated place of a backing and read back
// by QEMU at the guest-physical address. A user would lose data if these two ever differed.
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>

#include <fstream>

#include "daemon_fixture.h"
#include "host/attachment.h"
#include "host/qmp_client.h"
#include "host/vm_pager.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

class DaemonQemu : public DaemonTest {
 protected:
  void SetUp() override {
    if (::access(kQemu, X_OK) != 0) {
      GTEST_SKIP() << kQemu << " is not installed";
    }
  }

  /// Starts QEMU paused, with a channel and a monitor.
  void boot(std::vector<std::string> machine) {
    std::vector<std::string> words = {
        kQemu,
        "-S",
        "-accel",
        "tcg",
        "-display",
        "none",
        "-nodefaults",
        "-chardev",
        "socket,id=b,path=" + path("channel.sock") + ",server=on,wait=off",
        "-device",
        "virtio-serial",
        "-device",
        "virtserialport,chardev=b,name=org.fileballoon.0",
        "-qmp",
        "unix:" + path("qmp.sock") + ",server=on,wait=off"};
    words.insert(words.end(), machine.begin(), machine.end());
    std::vector<char*> argv;
    for (std::string& word : words) {
      argv.push_back(word.data());
    }
    argv.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execv(kQemu, argv.data());
      ::_exit(127);
    }
    qemu = Child(pid);
    ASSERT_TRUE(eventually(
        [&] {
          const auto qmp = QmpClient::connect(path("qmp.sock"));
          return qmp.has_value();
        },
        20s));
    spec = {"vm1", pid, path("channel.sock"), path("qmp.sock"), RefaultMode::kernel, 0};
  }

  /// Writes a mark where the layout says that `address` lies, and has QEMU read `address`.
  void expect_same_memory(const RamLayout& layout, std::uint64_t address) {
    const auto ram = GuestRam::open(qemu.pid());
    ASSERT_TRUE(ram) << ram.error().message;
    std::vector<BackingRange> pieces;
    ASSERT_TRUE(layout.translate({GuestFrame(address / kPageSize), 1}, pieces)) << address;
    const std::uint64_t mark = 0xfba11000'00000000 + address;
    ASSERT_EQ(::pwrite(ram->backings()[pieces[0].backing].fd.get(), &mark, sizeof mark,
                       static_cast<off_t>(pieces[0].range.start.bytes())),
              static_cast<ssize_t>(sizeof mark));
    auto qmp = QmpClient::connect(path("qmp.sock"));
    ASSERT_TRUE(qmp) << qmp.error().message;
    const auto seen = qmp->human(fmt::format("xp /1gx {:#x}", address));
    ASSERT_TRUE(seen) << seen.error().message;
    EXPECT_THAT(*seen, HasSubstr(fmt::format("{:#018x}", mark))) << std::hex << address;
  }

  Child qemu;
  VmSpec spec;
};

std::vector<std::string> one_backend(const std::string& machine, const std::string& size) {
  return {"-machine", machine + ",memory-backend=ram0",
          "-m",       size,
          "-object",  "memory-backend-memfd,id=ram0,share=on,size=" + size};
}

TEST_F(DaemonQemu, Q35With4GiBIsTranslatedRightOnBothSidesOfTheHole) {
  boot(one_backend("q35", "4G"));
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_THAT(attached->known.warnings, IsEmpty());
  for (const std::uint64_t address :
       {std::uint64_t{0x1000}, kGiB, 2 * kGiB - kPageSize, 4 * kGiB, 6 * kGiB - kPageSize}) {
    expect_same_memory(attached->layout, address);
  }
  std::vector<BackingRange> pieces;
  for (const std::uint64_t address : {2 * kGiB, 3 * kGiB, 6 * kGiB, std::uint64_t{0xc0000}}) {
    EXPECT_FALSE(attached->layout.translate({GuestFrame(address / kPageSize), 1}, pieces));
  }
}

TEST_F(DaemonQemu, I440fxWith4GiBIsTranslatedRight) {
  boot(one_backend("pc", "4G"));
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  for (const std::uint64_t address : {kGiB, 3 * kGiB - kPageSize, 4 * kGiB, 5 * kGiB - kPageSize}) {
    expect_same_memory(attached->layout, address);
  }
}

TEST_F(DaemonQemu, TwoNumaNodesWithOneBackendEach) {
  boot({"-machine", "q35", "-m", "4G", "-object", "memory-backend-memfd,id=a,share=on,size=2G",
        "-object", "memory-backend-memfd,id=b,share=on,size=2G", "-numa", "node,memdev=a", "-numa",
        "node,memdev=b"});
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_EQ(attached->known.backings.size(), 2U);
  for (const std::uint64_t address : {kGiB, 2 * kGiB - kPageSize, 4 * kGiB, 5 * kGiB}) {
    expect_same_memory(attached->layout, address);
  }
}

TEST_F(DaemonQemu, RamInATmpfsFileWorksToo) {
  const std::string file = "/dev/shm/fileballoon-test-" + std::to_string(::getpid());
  boot({"-machine", "q35,memory-backend=ram0", "-m", "256M", "-object",
        "memory-backend-file,id=ram0,size=256M,share=on,mem-path=" + file});
  ::unlink(file.c_str());
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  expect_same_memory(attached->layout, 0x8000000);
}

TEST_F(DaemonQemu, PrivateRamIsRefusedWithTheMissingOptions) {
  boot({"-machine", "q35", "-m", "256M"});
  const auto attached = attach_vm(spec);
  ASSERT_FALSE(attached);
  EXPECT_THAT(attached.error().message,
              AllOf(HasSubstr("-object memory-backend-memfd,id=ram0,size="),
                    HasSubstr("share=on -machine memory-backend=ram0")));
}

TEST_F(DaemonQemu, QemusOwnBalloonIsNamed) {
  auto machine = one_backend("q35", "256M");
  machine.insert(machine.end(),
                 {"-device", "virtio-balloon-pci,id=oldballoon,free-page-reporting=on"});
  boot(machine);
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_THAT(attached->known.warnings,
              ElementsAre(AllOf(HasSubstr("'oldballoon'"), HasSubstr("free page reporting"))));
}

// Other processes work in such memory: a page of it that is discarded or paged out is their loss.
TEST_F(DaemonQemu, SharedMemoryThatIsNoRamIsNeitherDiscardedNorPaged) {
  auto machine = one_backend("q35", "256M");
  machine.insert(machine.begin(), {"-object", "memory-backend-memfd,id=shm0,share=on,size=512M",
                                   "-device", "ivshmem-plain,memdev=shm0", "-object",
                                   "memory-backend-memfd,id=spare,share=on,size=32M"});
  boot(machine);
  const auto all = GuestRam::open(qemu.pid());
  ASSERT_TRUE(all) << all.error().message;
  ASSERT_EQ(all->backings().size(), 3U);
  const std::vector<std::byte> data(std::size_t{8} << 20, std::byte{7});
  for (const Backing& backing : all->backings()) {
    ASSERT_EQ(::pwrite(backing.fd.get(), data.data(), data.size(), 1 << 20),
              static_cast<ssize_t>(data.size()));
  }
  spec.refault = RefaultMode::uffd;
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_EQ(attached->ram->size(), Bytes::mib(256));
  EXPECT_THAT(attached->known.warnings, ElementsAre(HasSubstr("is no RAM of the guest")));
  EXPECT_THAT(attached->paging_hazards, IsEmpty());
  EXPECT_EQ(attached->layout.segments().front().backing, 0U);
  const BackingRange next{1, {HostOffset(0), Bytes(kPageSize)}};
  EXPECT_EQ(attached->ram->discard(next).discarded, 0U);

  const std::string socket = attached->ram->keeper_socket();
  PagingOptions store;
  store.vm = "vm1";
  store.memory = Bytes::mib(64);
  const Result<void> started = start_paging(socket, store);
  ASSERT_TRUE(started) << started.error().message;
  auto pager = faultd::PagingClient::connect(socket);
  ASSERT_TRUE(pager) << pager.error().message;
  ASSERT_TRUE(pager->set_goal(Bytes(0)));
  EXPECT_TRUE(eventually([&] { return attached->ram->footprint() < Bytes::mib(1); }, 20s))
      << attached->ram->footprint().as_mib();
  for (const Backing& backing : all->backings()) {
    if (backing.size != Bytes::mib(256)) {
      EXPECT_EQ(backing.footprint(), Bytes(data.size())) << backing.name;
    }
  }
  attached->ram->give_back();
}

// A frame may have gone out before the device came that forbids it: it must still come back.
TEST_F(DaemonQemu, AVmThatIsFoundAgainKeepsItsStoreWhateverWasPluggedInMeanwhile) {
  boot(one_backend("q35", "256M"));
  start();
  const Output done =
      ctl({"attach", "vm1", "--pid", std::to_string(qemu.pid()), "--channel", spec.channel, "--qmp",
           spec.qmp, "--refault", "uffd", "--store-memory", "64M"});
  ASSERT_EQ(done.status, 0) << done.error;
  daemon_.end(SIGKILL);
  const std::string disk = path("disk.img");
  std::ofstream(disk) << std::string(1 << 20, '\0');
  {
    auto qmp = QmpClient::connect(spec.qmp);
    ASSERT_TRUE(qmp) << qmp.error().message;
    const auto added =
        qmp->execute("blockdev-add", {{"driver", "file"},
                                      {"node-name", "d0"},
                                      {"filename", disk},
                                      {"cache", boost::json::object{{"direct", true}}}});
    ASSERT_TRUE(added) << added.error().message;
  }
  start();
  EXPECT_TRUE(eventually([&] {
    const boost::json::object vm = stats("vm1");
    const auto* paging = vm.if_contains("paging");
    return paging != nullptr && paging->is_object() && paging->as_object().contains("paged_bytes");
  })) << boost::json::serialize(stats("vm1"));
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
}

// Both would lose what a device writes to a frame that is being paged out.
TEST_F(DaemonQemu, AStoreIsRefusedForAVmWithADirectDriveAndTheRestIsNot) {
  const std::string disk = path("disk.img");
  std::ofstream(disk) << std::string(1 << 20, '\0');
  auto machine = one_backend("q35", "256M");
  machine.insert(machine.end(), {"-drive", "if=none,id=d0,format=raw,cache=none,file=" + disk});
  boot(machine);
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_THAT(attached->paging_hazards,
              ElementsAre(AllOf(HasSubstr("O_DIRECT"), HasSubstr(disk), HasSubstr("writeback"))));
}

TEST_F(DaemonQemu, AStoreIsNotRefusedForAVmWithACachedDrive) {
  const std::string disk = path("disk.img");
  std::ofstream(disk) << std::string(1 << 20, '\0');
  auto machine = one_backend("q35", "256M");
  machine.insert(machine.end(), {"-drive", "if=none,id=d0,format=raw,file=" + disk});
  boot(machine);
  const auto attached = attach_vm(spec);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_THAT(attached->paging_hazards, IsEmpty());
}

TEST_F(DaemonQemu, ABusyMonitorIsNamedAndNotNeededAfterARestart) {
  boot(one_backend("q35", "4G"));
  start();
  const std::vector<std::string> words = {
      "attach",    "vm1",        "--pid", std::to_string(qemu.pid()),
      "--channel", spec.channel, "--qmp", spec.qmp};
  const Output done = ctl(words);
  ASSERT_EQ(done.status, 0) << done.error;
  daemon_.end(SIGKILL);
  const auto holder = QmpClient::connect(spec.qmp);
  ASSERT_TRUE(holder) << holder.error().message;
  start();
  ASSERT_TRUE(eventually([&] { return call("list").as_array().at(0).at("state") != "waiting"; }));
  EXPECT_EQ(ctl({"detach", "vm1"}).status, 0);
  const Output refused = ctl(words);
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.error, HasSubstr("one client at a time"));
}

}  // namespace
}  // namespace fileballoon::host
