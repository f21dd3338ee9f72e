// What /proc says about a process that somebody wants to attach to, and whether it can be a target
// at all. Used before anything is done to the process, so that a wrong pid is refused by name.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon {

struct Process {
  pid_t pid = 0;
  UniqueFd pidfd;    ///< refers to this very process even after its pid has been reused
  std::string name;  ///< /proc/PID/comm
  uid_t uid = 0;
  pid_t tracer = 0;       ///< who traces it now; 0: nobody
  int seccomp = 0;        ///< 0 none, 1 strict, 2 filter (proc(5))
  bool is_64_bit = true;  ///< from the ELF class of /proc/PID/exe
  std::uint64_t start_time =
      0;  ///< clock ticks since boot: with the pid, names one process for ever

  /// "pid 1234 (qemu-system-x86)"
  [[nodiscard]] std::string label() const;
  /// False once it has exited (a zombie counts as exited); waits so long for that.
  [[nodiscard]] bool alive(std::chrono::milliseconds patience = {}) const;
};

/// Reads all of the above. Fails, saying which, for a pid that is gone, a zombie, a thread that is
/// not a thread-group leader, a kernel thread, or a process that this user may not look at.
[[nodiscard]] Result<Process> inspect_process(pid_t pid);

}  // namespace fileballoon
