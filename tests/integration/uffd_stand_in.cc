// A program that stands in for a VMM: it has guest RAM (--ram KIND), threads that sit in every kind
// of system call a VMM's threads sit in, and checks all the time that nobody disturbed them. It
// obeys one-line commands on its standard input and answers each with one line.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kPage = 4096;
constexpr int kMadvCollapse = 25;  // Linux 6.1; not in Debian 12's headers

std::atomic<std::uint64_t> errors{0};
std::atomic<std::uint64_t> progress{0};
std::atomic<std::uint64_t> signals{0};

void fail(const char* what) {
  ++errors;
  std::fprintf(stderr, "stand-in: %s: %s\n", what, std::strerror(errno));
}

void sleeper() {  // -ERESTART_RESTARTBLOCK
  for (;;) {
    timespec want{0, 20'000'000};
    timespec before{};
    timespec after{};
    ::clock_gettime(CLOCK_MONOTONIC, &before);
    if (::nanosleep(&want, nullptr) != 0) {
      fail("nanosleep");
    }
    ::clock_gettime(CLOCK_MONOTONIC, &after);
    if (static_cast<double>(after.tv_sec - before.tv_sec) +
            1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec) <
        0.0199) {
      fail("nanosleep was cut short");
    }
    ++progress;
  }
}

void poller() {  // -ERESTARTNOHAND, with a signal mask of its own for the call
  sigset_t mask;
  ::sigemptyset(&mask);
  ::sigaddset(&mask, SIGUSR1);
  ::sigaddset(&mask, SIGUSR2);
  for (;;) {
    timespec want{0, 30'000'000};
    if (::ppoll(nullptr, 0, &want, &mask) != 0) {
      fail("ppoll");
    }
    ++progress;
  }
}

// Opened before any thread runs, so that a count of the descriptors means something.
const int kEpoll = ::epoll_create1(EPOLL_CLOEXEC);

void epoller() {  // -EINTR after any stop
  for (;;) {
    epoll_event event{};
    if (::epoll_wait(kEpoll, &event, 1, 25) != 0) {
      fail("epoll_wait");
    }
    ++progress;
  }
}

void waiter() {  // -ERESTARTSYS
  static std::uint32_t word = 0;
  for (;;) {
    timespec want{0, 15'000'000};
    if (::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &want, nullptr, 0) == 0 ||
        errno != ETIMEDOUT) {
      fail("futex");
    }
    ++progress;
  }
}

void calculator() {  // registers and floating point state, outside any system call
  for (;;) {
    double sum = 0;
    std::uint64_t hash = 1469598103934665603ULL;
    for (int i = 1; i < 20000; ++i) {
      sum += std::sqrt(static_cast<double>(i)) / 3.0;
      hash = (hash ^ static_cast<std::uint64_t>(i)) * 1099511628211ULL;
    }
    static const double expected_sum = sum;
    static const std::uint64_t expected_hash = hash;
    if (sum != expected_sum || hash != expected_hash) {
      fail("arithmetic went wrong");
    }
    ++progress;
    ::usleep(1000);
  }
}

// Makes userfaultfd(2), and opening files unless `files`, kill the process, as a strict sandbox
// would.
void forbid_userfaultfd(bool files) {
  const std::uint32_t other = files ? SYS_userfaultfd : SYS_openat;
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, other, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog filter{sizeof program / sizeof program[0], program};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    fail("seccomp");
  }
}

// A mount namespace of its own in which everybody may (`mode` 0666) or nobody but root may (0600)
// open /dev/userfaultfd, and an ordinary user's rights in it.
bool become_nobody(mode_t mode) {
  struct stat device {};
  return ::stat("/dev/userfaultfd", &device) == 0 && ::unshare(CLONE_NEWNS) == 0 &&
         ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", "/mnt", "tmpfs", 0, "size=1m") == 0 &&
         ::mknod("/mnt/userfaultfd", S_IFCHR | 0600, device.st_rdev) == 0 &&
         ::chmod("/mnt/userfaultfd", mode) == 0 &&
         ::mount("/mnt/userfaultfd", "/dev/userfaultfd", nullptr, MS_BIND, nullptr) == 0 &&
         ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
}

int open_ram(const std::string& kind, std::size_t size) {
  int fd = -1;
  if (kind == "memfd") {
    fd = ::memfd_create("ram0", MFD_CLOEXEC);
  } else if (kind == "hugetlb") {
    fd = ::memfd_create("ram0", MFD_CLOEXEC | MFD_HUGETLB);
  } else if (kind != "private" && kind != "none") {
    fd = ::open(kind.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  }
  if (fd >= 0 && ::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    std::perror("ftruncate");
    std::exit(1);
  }
  return fd;
}

// SIGBUS is what a process is told about a page that is lost.
sigjmp_buf g_lost;

std::optional<std::uint64_t> read_if_there(const char* page) {
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = [](int) { ::siglongjmp(g_lost, 1); };
  ::sigaction(SIGBUS, &action, &old);
  volatile std::uint64_t word = 0;
  volatile bool is_there = false;
  if (sigsetjmp(g_lost, 1) == 0) {
    word = *reinterpret_cast<const volatile std::uint64_t*>(page);
    is_there = true;
  }
  ::sigaction(SIGBUS, &old, nullptr);
  return is_there ? std::optional<std::uint64_t>(word) : std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::string kind = "memfd";
  std::size_t size = 64 << 20;
  bool threads = true;
  bool sandbox = false;
  bool sandbox_files = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--ram" && i + 1 < argc) {
      kind = argv[++i];
    } else if (argument == "--mib" && i + 1 < argc) {
      size = std::stoul(argv[++i]) << 20;
    } else if (argument == "--quiet") {
      threads = false;
    } else if (argument == "--sandbox") {
      sandbox = true;
    } else if (argument == "--sandbox-with-files") {
      sandbox = sandbox_files = true;
    } else if (argument == "--nobody" && i + 1 < argc) {
      if (!become_nobody(static_cast<mode_t>(std::stoul(argv[++i], nullptr, 8)))) {
        std::perror("stand-in: --nobody");
        return 1;
      }
    }
  }
  const int fd = open_ram(kind, size);
  char* ram = nullptr;
  if (kind != "none") {
    const int flags = kind == "private" ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    // Where huge pages fit, as QEMU places its RAM.
    constexpr std::uintptr_t kHuge = 2 << 20;
    const auto reserved = reinterpret_cast<std::uintptr_t>(
        ::mmap(nullptr, size + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ram = static_cast<char*>(::mmap(reinterpret_cast<void*>((reserved + kHuge - 1) / kHuge * kHuge),
                                    size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0));
    if (ram == MAP_FAILED) {
      std::perror("mmap");
      return 1;
    }
  }
  struct sigaction action {};
  action.sa_handler = [](int) { ++signals; };
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  if (sandbox) {
    forbid_userfaultfd(sandbox_files);
  }
  // A handler that runs makes some calls return EINTR, rightly: only the main thread takes signals.
  sigset_t usr1;
  ::sigemptyset(&usr1);
  ::sigaddset(&usr1, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &usr1, nullptr);
  if (threads) {
    for (auto* body : {sleeper, poller, epoller, waiter, calculator}) {
      std::thread(body).detach();
    }
  }
  ::pthread_sigmask(SIG_UNBLOCK, &usr1, nullptr);
  std::cout << "ready " << reinterpret_cast<std::uintptr_t>(ram) << std::endl;

  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::string command;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    in >> command >> first >> count;
    if (command == "fill") {  // a pattern, one word a page
      for (std::uint64_t i = first; i < first + count; ++i) {
        *reinterpret_cast<volatile std::uint64_t*>(ram + i * kPage) = i + 1;
      }
      std::cout << "ok" << std::endl;
    } else if (command == "zero") {
      std::memset(ram + first * kPage, 0, count * kPage);
      std::cout << "ok" << std::endl;
    } else if (command == "check") {  // counts pages that differ from the pattern
      std::uint64_t wrong = 0;
      for (std::uint64_t i = first; i < first + count; ++i) {
        wrong += *reinterpret_cast<volatile std::uint64_t*>(ram + i * kPage) != i + 1 ? 1 : 0;
      }
      std::cout << wrong << std::endl;
    } else if (command ==
               "touch") {  // `first` pages over and over for `count` ms: how long they took
      using Clock = std::chrono::steady_clock;
      const auto end = Clock::now() + std::chrono::milliseconds(count);
      std::uint64_t touches = 0;
      std::uint64_t slow = 0;  // over 1 us: faults
      std::chrono::nanoseconds longest{};
      for (std::uint64_t page = 0; Clock::now() < end; page = (page + 257) % first) {
        const auto start = Clock::now();
        (void)*reinterpret_cast<volatile std::uint64_t*>(ram + page * kPage);
        const std::chrono::nanoseconds took = Clock::now() - start;
        longest = std::max(longest, took);
        slow += took > std::chrono::microseconds(1) ? 1 : 0;
        ++touches;
      }
      std::cout << touches << ' ' << slow << ' ' << longest.count() << std::endl;
    } else if (command == "collapse") {  // into huge pages
      const int result = ::madvise(ram + first * kPage, count * kPage, kMadvCollapse);
      std::cout << (result == 0 ? "ok" : std::strerror(errno)) << std::endl;
    } else if (command ==
               "survey") {  // pages that cannot be read, and of the others the wrong ones
      std::uint64_t lost = 0;
      std::uint64_t wrong = 0;
      for (std::uint64_t i = first; i < first + count; ++i) {
        const auto word = read_if_there(ram + i * kPage);
        lost += word ? 0 : 1;
        wrong += word && *word != i + 1 ? 1 : 0;
      }
      std::cout << lost << ' ' << wrong << std::endl;
    } else if (command == "unmap") {
      ::munmap(ram + first * kPage, count * kPage);
      std::cout << "ok" << std::endl;
    } else if (command == "remap") {  // moves all of it elsewhere
      void* at = ::mremap(ram, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
                          ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      ram = static_cast<char*>(at);
      std::cout << (at == MAP_FAILED ? "failed" : "ok") << std::endl;
    } else if (command == "errors") {
      std::cout << errors.load() << std::endl;
    } else if (command == "progress") {
      std::cout << progress.load() << std::endl;
    } else if (command == "signals") {
      std::cout << signals.load() << std::endl;
    } else if (command == "fds") {
      std::uint64_t open = 0;
      for (int i = 0; i < 256; ++i) {
        open += ::fcntl(i, F_GETFD) >= 0 ? 1 : 0;
      }
      std::cout << open << std::endl;
    } else {
      break;
    }
  }
  if (kind.starts_with("/")) {
    ::unlink(kind.c_str());
  }
  ::_exit(0);
}
