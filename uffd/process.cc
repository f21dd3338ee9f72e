#include "uffd/process.h"

#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace fileballoon {
namespace {

constexpr unsigned long kPfKthread = 0x00200000;  // include/linux/sched.h

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The value of a "Key:\tvalue" line of /proc/PID/status; 0 where it is missing.
long status_value(const std::string& status, const std::string& key) {
  const auto at = status.find("\n" + key + ":");
  return at == std::string::npos ? 0
                                 : std::strtol(status.c_str() + at + key.size() + 2, nullptr, 10);
}

}  // namespace

std::string Process::label() const { return "pid " + std::to_string(pid) + " (" + name + ")"; }

bool Process::alive(std::chrono::milliseconds patience) const {
  pollfd p{pidfd.get(), POLLIN, 0};  // pidfd_open(2): readable when the process has terminated
  return pidfd.valid() && ::poll(&p, 1, static_cast<int>(patience.count())) == 0;
}

Result<Process> inspect_process(pid_t pid) {
  const std::string pid_text = "pid " + std::to_string(pid);
  if (pid <= 0) {
    return Error{pid_text + " is not a process id: it must be a positive number"};
  }
  Process process;
  process.pid = pid;
  process.pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.pidfd.valid()) {
    const int error = errno;
    if (error == ESRCH) {
      return Error{pid_text + " does not exist: it has exited, or never was"};
    }
    // pidfd_open(2) refuses a thread that leads no group: EINVAL, since 6.9 ENOENT.
    if (error == EINVAL || error == ENOENT) {
      return Error{pid_text + " is a thread of another process: give the process's own pid"};
    }
    return Error{pid_text + " cannot be opened: " + std::strerror(error)};
  }
  const std::string proc = "/proc/" + std::to_string(pid);
  const std::string stat = read_file(proc + "/stat");
  const auto open = stat.find('(');
  const auto close = stat.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open) {
    return Error{pid_text + " does not exist: it has exited, or /proc hides it from this user"};
  }
  process.name = stat.substr(open + 1, close - open - 1);
  char state = '?';
  unsigned long flags = 0;
  {
    // proc(5), fields from the third on: state, 5 numbers, flags, … the 22nd is starttime.
    std::istringstream fields(stat.substr(close + 2));
    std::string skip;
    fields >> state;
    for (int i = 0; i < 5; ++i) {
      fields >> skip;
    }
    fields >> flags;
    for (int i = 0; i < 12; ++i) {
      fields >> skip;
    }
    fields >> process.start_time;
  }
  if ((flags & kPfKthread) != 0) {
    return Error{process.label() + " is a kernel thread: it has no memory of its own"};
  }
  if (state == 'Z' || state == 'X') {
    return Error{process.label() + " has exited already (it is a zombie)"};
  }
  const std::string status = read_file(proc + "/status");
  process.uid = static_cast<uid_t>(status_value(status, "Uid"));
  process.tracer = static_cast<pid_t>(status_value(status, "TracerPid"));
  process.seccomp = static_cast<int>(status_value(status, "Seccomp"));

  const UniqueFd exe(::open((proc + "/exe").c_str(), O_RDONLY | O_CLOEXEC));
  if (!exe.valid()) {
    const int error = errno;
    if (error == EACCES || error == EPERM) {
      return Error{process.label() + " belongs to uid " + std::to_string(process.uid) +
                   " and this user may not look into it: run as root, or with CAP_SYS_PTRACE"};
    }
    return Error{process.label() + ": cannot open its program: " + std::strerror(error)};
  }
  std::array<unsigned char, EI_NIDENT> ident{};
  if (::pread(exe.get(), ident.data(), ident.size(), 0) == static_cast<ssize_t>(ident.size())) {
    process.is_64_bit = ident[EI_CLASS] == ELFCLASS64;
  }
  if (!process.alive()) {
    return Error{process.label() + " has exited just now"};
  }
  return process;
}

}  // namespace fileballoon
