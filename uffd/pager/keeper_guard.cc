#include "uffd/pager/keeper_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace fileballoon::faultd {
namespace {

// Descriptors of the guard: the leash, then the userfaultfds.
constexpr int kLeash = 3;
constexpr char kFarewell = '.';

}  // namespace

Result<KeeperGuard> KeeperGuard::start(std::span<const Userfaultfd> userfaultfds, pid_t pid) {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return Error{std::string("cannot start the guard of paged-out frames: pipe2: ") +
                 std::strerror(errno)};
  }
  // Out of the way of the numbers that the guard gets.
  const int first_free = kLeash + 1 + static_cast<int>(userfaultfds.size());
  const UniqueFd read_end(::fcntl(ends[0], F_DUPFD_CLOEXEC, first_free));
  ::close(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<UniqueFd> copies;
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, read_end.get(), kLeash);
  int number = kLeash + 1;
  for (const Userfaultfd& uffd : userfaultfds) {
    copies.emplace_back(::fcntl(uffd.fd(), F_DUPFD_CLOEXEC, first_free));
    ::posix_spawn_file_actions_adddup2(&actions, copies.back().get(), number++);
  }
  const std::string vmm = std::to_string(pid);
  std::vector<std::string> arguments = {"fileballoon-faultd", "--guard", "--pid", vmm};
  std::vector<char*> argv;
  for (std::string& argument : arguments) {
    argv.push_back(argument.data());
  }
  argv.push_back(nullptr);
  pid_t guard = -1;
  const int error =
      ::posix_spawn(&guard, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return Error{std::string("cannot start the guard of paged-out frames: ") +
                 std::strerror(error)};
  }
  return KeeperGuard(std::move(write_end), guard);
}

void KeeperGuard::dismiss() {
  if (leash_.valid()) {
    (void)!::write(leash_.get(), &kFarewell, 1);
    leash_.reset();
    (void)::waitpid(pid_, nullptr, 0);
  }
}

int run_guard(pid_t vmm) {
  // What ends the keeper must not end its guard.
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGPIPE}) {
    ::signal(signal, SIG_IGN);
  }
  (void)::setsid();
  std::ofstream("/proc/self/oom_score_adj") << -1000;
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, vmm, 0)));
  if (!process.valid() && errno == ESRCH) {
    return 0;  // the VM has ended already, and nothing would wake the waits below
  }
  pollfd polled[] = {{kLeash, POLLIN, 0}, {process.get(), POLLIN, 0}};
  while (::poll(polled, 2, -1) < 0 && errno == EINTR) {
  }
  char word = 0;
  if (polled[1].revents != 0 || (::read(kLeash, &word, 1) == 1 && word == kFarewell)) {
    return 0;
  }
  (void)::syscall(SYS_pidfd_send_signal, process.get(), SIGSTOP, nullptr, 0);
  ::openlog("fileballoon-faultd", LOG_PID, LOG_DAEMON);
  ::syslog(LOG_CRIT,
           "the keeper of pid %d died while frames were paged out; their content is lost. The VM "
           "has been stopped (SIGSTOP) and must be started anew",
           static_cast<int>(vmm));
  polled[0].fd = -1;
  while (::poll(polled, 2, -1) < 0 && errno == EINTR) {
  }
  return 1;
}

}  // namespace fileballoon::faultd
