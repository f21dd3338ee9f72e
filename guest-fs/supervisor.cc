#include "guest-fs/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "guest-fs/fuse_server.h"
#include "guest-fs/inflater.h"
#include "guest-fs/log.h"
#include "guest-fs/preflight.h"
#include "guest-fs/protect.h"
#include "guest-fs/shared_block.h"

namespace fileballoon::guest {
namespace {

/// Threads that answer the kernel: one fills while the other answers small requests.
constexpr int kServerThreads = 2;
constexpr std::chrono::seconds kStopPatience{3};

// What the two processes say to each other over the control socket, a byte each: 'm' mounted,
// 'w' wake up, 's' stop; the inflater answers 'r' ready, or the text of what went wrong.

std::array<UniqueFd, 2> make_socket_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw std::system_error(errno, std::generic_category(), "socketpair");
  }
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void say(int fd, std::string_view text) {
  // Never blocks: a full socket already holds a wake-up.
  [[maybe_unused]] const ssize_t sent =
      ::send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

/// A daemon's processes must not hold the caller's pipes open.
void leave_terminal() {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    ::dup2(null.get(), fd);
  }
}

/// Detaches the mount of a supervisor that died, if it is still that one.
void detach_dead_mount(const std::string& mount_point) {
  struct statfs status {};
  if (::statfs(mount_point.c_str(), &status) != 0 && errno == ENOTCONN) {
    ::umount2(mount_point.c_str(), MNT_DETACH);
    log_error("the file system process is gone; the balloon was emptied and unmounted");
  }
}

/// The inflater process; never returns.
[[noreturn]] void run_inflater(const Options& options, Bytes ram, std::vector<FrameRange> ranges,
                               SharedBlock& shared, UniqueFd control) {
  // Ctrl-C goes to the whole group: the supervisor decides what it means.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  ::prctl(PR_SET_NAME, "balloonfs-infl");
  lock_memory(/*future=*/false);
  const int fd = control.get();
  // Whoever reads `stats` as soon as the mount is there wakes us ('w') before we are told of it.
  for (char byte = 0; byte != 'm';) {
    if (::recv(fd, &byte, 1, 0) != 1) {
      ::_exit(EXIT_FAILURE);  // the supervisor gave up
    }
  }
  auto end = Inflater::End::stopped;
  try {
    Inflater inflater({options.mount_point, options.channel, ram, std::move(ranges), options.cache,
                       options.pages, options.deflate, options.deflate_every},
                      shared, fd);
    if (!options.foreground) {
      leave_terminal();
      log_to(LogSink::system);
    }
    say(fd, "r");
    end = inflater.run();
    if (end == Inflater::End::file_failed) {
      log_error("the balloon file does not answer any more");
    }
  } catch (const std::exception& error) {
    say(fd, error.what());
    ::_exit(EXIT_FAILURE);
  }
  if (end != Inflater::End::stopped) {
    detach_dead_mount(options.mount_point);
  }
  ::_exit(end == Inflater::End::stopped ? EXIT_SUCCESS : EXIT_FAILURE);
}

/// Owns the child process: it is gone when this is.
class Child {
 public:
  explicit Child(pid_t pid)
      : pid_(pid), pidfd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill_and_reap(); }

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }

  /// Waits for its end; false on timeout.
  bool wait_for(std::chrono::milliseconds timeout) {
    pollfd poll_fd{pidfd_.get(), POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(timeout.count())) > 0;
  }
  void kill_and_reap() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = 0;
    }
  }

 private:
  pid_t pid_;
  UniqueFd pidfd_;
};

class Supervisor {
 public:
  Supervisor(const Options& options, Bytes ram, std::vector<FrameRange> ranges)
      : options_(options), ram_(ram), ranges_(std::move(ranges)), shared_(*SharedBlock::create()) {
    shared_.set_limits(options_.limits);
    sigset_t signals;
    ::sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
      ::sigaddset(&signals, signal);
    }
    ::pthread_sigmask(SIG_BLOCK, &signals, &old_signals_);
    signals_.reset(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    ended_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!signals_.valid() || !ended_.valid()) {
      throw std::system_error(errno, std::generic_category(), "signalfd, eventfd");
    }
  }

  /// Brings everything up; throws with the reason where that fails.
  void start() {
    protect_process();
    auto ends = make_socket_pair();
    // The child comes first: it must not inherit /dev/fuse, or the death of this process would not
    // end the connection, nor any thread.
    const pid_t pid = ::fork();
    if (pid < 0) {
      throw std::system_error(errno, std::generic_category(), "fork");
    }
    if (pid == 0) {
      ends[0].reset();
      signals_.reset();
      ::pthread_sigmask(SIG_SETMASK, &old_signals_, nullptr);
      run_inflater(options_, ram_, std::move(ranges_), shared_, std::move(ends[1]));
    }
    child_.emplace(pid);
    control_ = std::move(ends[0]);
    ends[1].reset();

    FuseServerConfig config;
    config.mount_point = options_.mount_point;
    config.source = options_.source;
    config.channel = to_string(options_.channel);
    config.ram = ram_;
    config.wake_inflater = [fd = control_.get()] { say(fd, "w"); };
    server_.emplace(std::move(config), shared_);
    server_->set_inflater(pid);
    struct stat status {};
    mounts_.reset(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
    server_->start(kServerThreads, [fd = ended_.get()] {
      const std::uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof one);
    });
    lock_memory(/*future=*/true);
    if (::stat(options_.mount_point.c_str(), &status) != 0) {
      throw std::system_error(errno, std::generic_category(), "stat " + options_.mount_point);
    }
    device_ = status.st_dev;
    say(control_.get(), "m");
    wait_until_ready();
  }

  /// Watches until the end; returns the exit status.
  int watch() {
    while (true) {
      std::array<pollfd, 4> polls = {{{signals_.get(), POLLIN, 0},
                                      {child_->pidfd(), POLLIN, 0},
                                      {ended_.get(), POLLIN, 0},
                                      {mounts_.get(), POLLPRI, 0}}};
      if (::poll(polls.data(), polls.size(), -1) < 0) {
        continue;
      }
      if (polls[0].revents != 0) {
        log_info("stopping: the balloon is emptied and unmounted");
        return stop(EXIT_SUCCESS);
      }
      if (polls[1].revents != 0) {
        log_error("the inflater process is gone; the balloon is emptied and unmounted");
        return stop(EXIT_FAILURE);
      }
      if (polls[2].revents != 0 || (polls[3].revents != 0 && !still_mounted())) {
        log_info("unmounted from outside; ending");
        server_->forget_mount();
        return stop(EXIT_SUCCESS);
      }
    }
  }

 private:
  void wait_until_ready() {
    std::array<char, 1024> text;
    pollfd poll_fd{control_.get(), POLLIN, 0};
    ::poll(&poll_fd, 1, 30'000);
    const ssize_t got = ::recv(control_.get(), text.data(), text.size(), MSG_DONTWAIT);
    if (got == 1 && text[0] == 'r') {
      return;
    }
    throw std::runtime_error(got > 0 ? std::string(text.data(), static_cast<std::size_t>(got))
                                     : "the inflater process did not start");
  }

  [[nodiscard]] bool still_mounted() const {
    // mountinfo says by POLLPRI that some mount changed; whether it was this one, its device says.
    struct stat status {};
    return ::stat(options_.mount_point.c_str(), &status) == 0 && status.st_dev == device_;
  }

  int stop(int status) {
    say(control_.get(), "s");
    const bool asks_host = options_.deflate == DeflateMode::tell_host_first;
    if (!child_->wait_for(kStopPatience +
                          (asks_host ? Inflater::kLeaveWithin : std::chrono::seconds(0)))) {
      log_warning("the inflater process does not end; killing it");
    }
    child_->kill_and_reap();
    server_.reset();
    return status;
  }

  Options options_;
  Bytes ram_;
  std::vector<FrameRange> ranges_;
  SharedBlock& shared_;  // lives as long as the process
  sigset_t old_signals_{};
  UniqueFd signals_;
  UniqueFd ended_;
  UniqueFd mounts_;
  UniqueFd control_;
  dev_t device_ = 0;
  // The server goes before the child: in a failed start it must still answer while the child ends.
  std::optional<Child> child_;
  std::optional<FuseServer> server_;
};

/// Tells the waiting caller of a daemon how the start went: empty for good.
class StartReport {
 public:
  /// Forks; true in the daemon, false in the caller.
  bool fork_daemon() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw std::system_error(errno, std::generic_category(), "pipe2");
    }
    read_.reset(ends[0]);
    write_.reset(ends[1]);
    const pid_t pid = ::fork();
    if (pid < 0) {
      throw std::system_error(errno, std::generic_category(), "fork");
    }
    if (pid != 0) {
      write_.reset();
      return false;
    }
    read_.reset();
    ::setsid();
    return true;
  }
  /// In the daemon.
  void send_good() {
    [[maybe_unused]] const ssize_t written = ::write(write_.get(), "+", 1);
    write_.reset();
  }
  /// In the caller: whether the daemon got up.
  bool wait() {
    char byte = 0;
    ssize_t got = -1;
    do {
      got = ::read(read_.get(), &byte, 1);
    } while (got < 0 && errno == EINTR);
    return got == 1;
  }

 private:
  UniqueFd read_;
  UniqueFd write_;
};

}  // namespace

int run_agent(const Options& options, Bytes ram, std::vector<FrameRange> ram_ranges) {
  if (const auto error = preflight(options.mount_point, options.channel)) {
    log_error(error->message);
    return EXIT_FAILURE;
  }
  for (const std::string& warning : preflight_warnings()) {
    log_warning(warning);
  }
  // A daemon changes to "/", so the mount point must not depend on where it was started.
  Options absolute = options;
  if (char* const path = ::realpath(options.mount_point.c_str(), nullptr); path != nullptr) {
    absolute.mount_point = path;
    std::free(path);
  }
  StartReport report;
  if (!options.foreground && !report.fork_daemon()) {
    return report.wait() ? EXIT_SUCCESS : EXIT_FAILURE;
  }
  try {
    if (::chdir("/") != 0) {
      log_warning("chdir /: " + std::string(std::strerror(errno)));
    }
    Supervisor supervisor(absolute, ram, std::move(ram_ranges));
    supervisor.start();
    if (!options.foreground) {
      report.send_good();
      leave_terminal();
      log_to(LogSink::system);
    }
    log_info("balloon on " + absolute.mount_point + ", target " +
             to_string(absolute.limits.target) + ", channel " + to_string(absolute.channel));
    return supervisor.watch();
  } catch (const std::exception& error) {
    log_error(error.what());
    return EXIT_FAILURE;
  }
}

}  // namespace fileballoon::guest
