#include "guest-fs/read_ahead.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <system_error>

#include "guest-fs/protect.h"

namespace fileballoon::guest {
namespace {

constexpr int kAnyCpu = -1;
/// Filling is most of what growth costs the guest, and somebody else's work is always more urgent.
/// A tenth of a CPU that is busy otherwise is left to it, as in a guest that is never idle it must
/// not stop.
constexpr int kNice = 10;

struct Order {
  Extent extent;
  bool whole = false;
  int cpu = kAnyCpu;
};

/// The CPUs that this process may run on, and the one of them that it is told to.
class Affinity {
 public:
  Affinity() { ::sched_getaffinity(0, sizeof all_, &all_); }
  void choose(int cpu) {
    if (cpu == chosen_) {
      return;
    }
    chosen_ = cpu;
    cpu_set_t one;
    CPU_ZERO(&one);
    if (cpu != kAnyCpu && cpu < CPU_SETSIZE) {
      CPU_SET(cpu, &one);  // one that is offline is refused, and the process stays where it is
    }
    ::sched_setaffinity(0, sizeof one, CPU_COUNT(&one) > 0 ? &one : &all_);
  }

 private:
  cpu_set_t all_{};
  int chosen_ = kAnyCpu;
};

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

Pipe make_pipe(int read_flags) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "pipe2");
  }
  Pipe pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  if (read_flags != 0) {
    ::fcntl(pipe.read_end.get(), F_SETFL, read_flags);
  }
  return pipe;
}

}  // namespace

ReadAhead::ReadAhead(const BalloonFile& file) {
  Pipe work = make_pipe(0);
  Pipe done = make_pipe(O_NONBLOCK);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) {
    throw std::system_error(errno, std::generic_category(), "fork");
  }
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) {
      ::_exit(EXIT_FAILURE);
    }
    work.write_end.reset();
    done.read_end.reset();
    serve(file, std::move(work.read_end), std::move(done.write_end));
  }
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  work_ = std::move(work.write_end);
  done_ = std::move(done.read_end);
}

ReadAhead::~ReadAhead() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void ReadAhead::serve(const BalloonFile& file, UniqueFd work, UniqueFd done) {
  ::prctl(PR_SET_NAME, "balloonfs-read");
  ::setpriority(PRIO_PROCESS, 0, kNice);
  lock_memory(/*future=*/false);
  // It has nothing to say, and must not hold open what its parents wrote to.
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    ::dup2(null.get(), fd);
  }
  Affinity affinity;
  Order order;
  while (true) {
    const ssize_t got = ::read(work.get(), &order, sizeof order);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got != sizeof order) {
      ::_exit(EXIT_SUCCESS);  // the inflater is gone
    }
    affinity.choose(order.cpu);
    file.prefetch(order.extent, order.whole);
    if (::write(done.get(), "+", 1) != 1) {
      ::_exit(EXIT_FAILURE);
    }
  }
}

void ReadAhead::start(Extent extent, bool whole, std::optional<unsigned> cpu) {
  const Order order{extent, whole, cpu ? static_cast<int>(*cpu) : kAnyCpu};
  // Atomic and without waiting: a pipe holds 64 KiB, and a handful are ever under way.
  [[maybe_unused]] const ssize_t written = ::write(work_.get(), &order, sizeof order);
}

std::size_t ReadAhead::finished() {
  std::array<char, 64> bytes;
  const ssize_t got = ::read(done_.get(), bytes.data(), bytes.size());
  return got > 0 ? static_cast<std::size_t>(got) : 0;
}

std::size_t ReadAhead::wait() {
  while (true) {
    std::array<pollfd, 2> polls = {{{done_.get(), POLLIN, 0}, {pidfd_.get(), POLLIN, 0}}};
    ::poll(polls.data(), polls.size(), -1);
    if (const std::size_t count = finished(); count > 0 || polls[1].revents != 0) {
      return count;
    }
  }
}

}  // namespace fileballoon::guest
