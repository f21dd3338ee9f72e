// Firecracker's page-fault protocol, against a stand-in VMM that follows it to the letter: a
// process that maps guest memory, makes a non-blocking userfaultfd with EVENT_REMOVE, registers it,
// sends one message, and inflates its balloon by MADV_DONTNEED. If these failed, a micro-VM resumed
// from a snapshot would read wrong memory or hang.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "uffd/firecracker/handler.h"

namespace fileballoon::firecracker {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::uint64_t kPages = 1024;

std::uint64_t content(std::uint64_t page) { return page * 7919 + 1; }

// Sends `json` with descriptors, as Firecracker does.
bool send_with_fds(int socket, const std::string& json, const std::vector<int>& fds) {
  iovec part{const_cast<char*>(json.data()), json.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(json.size());
}

int connect_to(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? fd : -1;
}

struct Vmm {
  volatile std::uint64_t* ram = nullptr;
  int uffd = -1;
  int socket = -1;
  [[nodiscard]] std::uint64_t read(std::uint64_t page) const { return ram[page * 512]; }
  void remove(std::uint64_t first, std::uint64_t count) const {
    ::madvise(const_cast<std::uint64_t*>(ram) + first * 512, count * kPageSize, MADV_DONTNEED);
  }
};

class Firecracker : public ::testing::Test {
 protected:
  Firecracker() {
    char path[] = "/tmp/fileballoon-fc-XXXXXX";
    directory_ = ::mkdtemp(path);
    const UniqueFd fd(::open(memory_file().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    std::vector<std::uint64_t> page(512);
    for (std::uint64_t i = 0; i < kPages; ++i) {
      page[0] = content(i);
      EXPECT_EQ(::pwrite(fd.get(), page.data(), kPageSize, static_cast<off_t>(i * kPageSize)),
                4096);
    }
  }
  ~Firecracker() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    std::filesystem::remove_all(directory_);
  }
  [[nodiscard]] std::string socket_path() const { return directory_ + "/uffd.sock"; }
  [[nodiscard]] std::string memory_file() const { return directory_ + "/mem"; }

  // Starts the stand-in; two regions (as around the MMIO gap), the second first in the file.
  void start_vmm(const std::function<int(Vmm&)>& body, bool blocking = false) {
    child_ = ::fork();
    ASSERT_GE(child_, 0);
    if (child_ > 0) {
      return;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Vmm vmm;
    vmm.ram = static_cast<std::uint64_t*>(::mmap(
        nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    vmm.uffd =
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | (blocking ? 0 : O_NONBLOCK)));
    uffdio_api api{UFFD_API, UFFD_FEATURE_EVENT_REMOVE, 0};
    const auto base = reinterpret_cast<std::uintptr_t>(vmm.ram);
    uffdio_register registration{{base, kPages * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (::ioctl(vmm.uffd, UFFDIO_API, &api) != 0 ||
        ::ioctl(vmm.uffd, UFFDIO_REGISTER, &registration) != 0) {
      ::_exit(100);
    }
    vmm.socket = connect_to(socket_path());
    const std::uint64_t half = kPages / 2 * kPageSize;
    const std::string json =
        "[{\"base_host_virt_addr\":" + std::to_string(base) + ",\"size\":" + std::to_string(half) +
        ",\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}," +
        "{\"base_host_virt_addr\":" + std::to_string(base + half) +
        ",\"size\":" + std::to_string(half) + ",\"offset\":" + std::to_string(half) +
        ",\"page_size\":4096,\"page_size_kib\":4096}]";
    if (!send_with_fds(vmm.socket, json, {vmm.uffd})) {
      ::_exit(101);
    }
    ::_exit(body(vmm));
  }

  [[nodiscard]] int vmm_status() {
    int status = 0;
    ::waitpid(child_, &status, 0);
    child_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string directory_;
  pid_t child_ = 0;
};

TEST_F(Firecracker, ServesContentZerosAndRemovals) {
  auto listener = Listener::listen(socket_path()).value();
  start_vmm([](Vmm& vmm) {
    for (std::uint64_t i = 0; i < kPages; i += 3) {
      if (vmm.read(i) != content(i)) {
        return 1;
      }
    }
    vmm.remove(100, 600);  // the balloon: pages that were read, and pages that never were
    for (std::uint64_t i = 100; i < 700; ++i) {
      if (vmm.read(i) != 0) {
        return 2;
      }
    }
    for (std::uint64_t i = 0; i < kPages; ++i) {
      if (i >= 100 && i < 700) {
        continue;
      }
      if (vmm.read(i) != content(i)) {
        return 3;
      }
    }
    return 0;
  });
  auto handler = Handler::start(listener.accept(5s).value(), memory_file());
  ASSERT_TRUE(handler.has_value()) << handler.error().message;
  for (int i = 0; i < 100; ++i) {
    if ((*handler)->wait(100ms).find("has exited") != std::string::npos) {
      break;
    }
  }
  EXPECT_EQ(vmm_status(), 0);
  EXPECT_GE((*handler)->stats().remove_events, 1U);
  EXPECT_GT((*handler)->stats().content_pages, 0U);
}

// Faults and removals of the same pages at the same time: after its MADV_DONTNEED has returned, a
// thread must never read the old content, in whatever order the handler saw the messages.
TEST_F(Firecracker, ARemovedPageNeverComesBackWithItsOldContent) {
  auto listener = Listener::listen(socket_path()).value();
  start_vmm([](Vmm& vmm) {
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> bad{0};
    std::thread toucher([&] {
      while (!stop) {
        for (std::uint64_t i = 0; i < kPages; ++i) {
          const std::uint64_t value = vmm.read(i);
          bad += value != 0 && value != content(i) ? 1 : 0;
        }
      }
    });
    for (std::uint64_t i = 0; i + 4 <= kPages; i += 4) {
      vmm.remove(i, 4);
      for (std::uint64_t page = i; page < i + 4; ++page) {
        bad += vmm.read(page) != 0 ? 1 : 0;
      }
    }
    stop = true;
    toucher.join();
    return bad == 0 ? 0 : 1;
  });
  auto handler = Handler::start(listener.accept(5s).value(), memory_file());
  ASSERT_TRUE(handler.has_value()) << handler.error().message;
  EXPECT_EQ(vmm_status(), 0);
}

TEST_F(Firecracker, WithoutAMemoryFileAllIsZero) {
  auto listener = Listener::listen(socket_path()).value();
  start_vmm([](Vmm& vmm) {
    for (std::uint64_t i = 0; i < kPages; ++i) {
      if (vmm.read(i) != 0) {
        return 1;
      }
    }
    return 0;
  });
  auto handler = Handler::start(listener.accept(5s).value(), "");
  ASSERT_TRUE(handler.has_value()) << handler.error().message;
  EXPECT_EQ(vmm_status(), 0);
  EXPECT_LT((*handler)->stats().missing_faults, 100U) << "ranges, not pages";
}

TEST_F(Firecracker, ADescriptorWithoutONonblockIsServedToo) {
  auto listener = Listener::listen(socket_path()).value();
  start_vmm([](Vmm& vmm) { return vmm.read(5) == content(5) ? 0 : 1; }, true);
  auto handler = Handler::start(listener.accept(5s).value(), memory_file());
  ASSERT_TRUE(handler.has_value()) << handler.error().message;
  EXPECT_EQ(vmm_status(), 0);
}

TEST_F(Firecracker, ASecondMessageIsNamedAndTheVmIsServedOn) {
  auto listener = Listener::listen(socket_path()).value();
  start_vmm([](Vmm& vmm) {
    ::usleep(100'000);
    send_with_fds(vmm.socket, "[]", {});
    ::usleep(100'000);
    return vmm.read(5) == content(5) ? 0 : 1;
  });
  auto handler = Handler::start(listener.accept(5s).value(), memory_file());
  ASSERT_TRUE(handler.has_value()) << handler.error().message;
  EXPECT_THAT((*handler)->wait(5s), HasSubstr("second message"));
  EXPECT_EQ(vmm_status(), 0);
}

// Bad messages, through a socket pair.

std::string refused(const std::string& json, const std::vector<int>& fds) {
  int pair[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd ours(pair[0]);
  UniqueFd theirs(pair[1]);
  EXPECT_TRUE(json.empty() || send_with_fds(theirs.get(), json, fds));
  if (json.empty()) {
    theirs.reset();
  }
  const auto handshake = receive_handshake(ours.get(), 200);
  return handshake.has_error() ? handshake.error().message : "accepted";
}

std::string region(const std::string& address, const std::string& size,
                   const std::string& offset = "0", const std::string& page = "4096") {
  return "{\"base_host_virt_addr\":" + address + ",\"size\":" + size + ",\"offset\":" + offset +
         ",\"page_size\":" + page + "}";
}

TEST(FirecrackerRefuses, BadMessages) {
  const UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  ASSERT_TRUE(uffd.valid());
  const UniqueFd file(::memfd_create("no", MFD_CLOEXEC));
  const int u = uffd.get();
  const std::string good = "[" + region("4096", "8192") + "]";
  EXPECT_EQ(refused(good, {u}), "accepted");
  EXPECT_THAT(refused("{nonsense", {u}), HasSubstr("bad JSON"));
  EXPECT_THAT(refused("{}", {u}), HasSubstr("not a JSON array"));
  EXPECT_THAT(refused("[]", {u}), HasSubstr("0 regions"));
  EXPECT_THAT(refused("[1]", {u}), HasSubstr("is not an object"));
  EXPECT_THAT(refused("[{\"size\":4096}]", {u}), HasSubstr("lacks base_host_virt_addr"));
  EXPECT_THAT(refused(good, {}), HasSubstr("0 file descriptors"));
  EXPECT_THAT(refused(good, {u, u}), HasSubstr("2 file descriptors"));
  EXPECT_THAT(refused(good, {file.get()}), HasSubstr("not a userfaultfd"));
  EXPECT_THAT(refused("[" + region("4097", "4096") + "]", {u}), HasSubstr("not aligned"));
  EXPECT_THAT(refused("[" + region("4096", "0") + "]", {u}), HasSubstr("empty"));
  EXPECT_THAT(refused("[" + region("4096", "100") + "]", {u}), HasSubstr("not aligned"));
  EXPECT_THAT(refused("[" + region("-4096", "4096") + "]", {u}), HasSubstr("lacks"));
  EXPECT_THAT(refused("[" + region("18446744073709547520", "8192") + "]", {u}),
              HasSubstr("wraps around"));
  EXPECT_THAT(refused("[" + region("4096", "8192", "18446744073709547520") + "]", {u}),
              HasSubstr("wraps around"));
  EXPECT_THAT(refused("[" + region("4096", "8192") + "," + region("8192", "4096") + "]", {u}),
              HasSubstr("overlap"));
  EXPECT_THAT(refused("[" + region("2097152", "2097152", "0", "2097152") + "]", {u}),
              HasSubstr("only 4096"));
  EXPECT_THAT(refused(good + good, {u}), HasSubstr("second message"));
  EXPECT_THAT(refused("[", {u}), HasSubstr("no whole message"));
  EXPECT_THAT(refused("", {}), HasSubstr("closed"));
  EXPECT_EQ(refused("[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0,"
                    "\"page_size_kib\":4096}]",
                    {u}),
            "accepted")
      << "older versions send the page size under this name only, in bytes";
}

TEST_F(Firecracker, RefusesAMemoryFileThatIsTooShort) {
  const std::vector<Region> regions = {{0, kPages * kPageSize, kPageSize, kPageSize}};
  const auto source = SnapshotSource::open(memory_file(), regions);
  ASSERT_TRUE(source.has_error());
  EXPECT_THAT(source.error().message, HasSubstr("is shorter"));
}

}  // namespace
}  // namespace fileballoon::firecracker
