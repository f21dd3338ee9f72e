// KeeperGuard: a second holder of a VM's userfaultfds while frames are paged out. If the keeper
// dies, their content is gone, and the kernel would answer their faults with zeros as soon as the
// last userfaultfd is closed. The guard is a process that does nothing but hold them open: if the
// keeper ends without having taken leave, it stops the VM (SIGSTOP), says so in the system log, and
// holds on until the VM is gone. A guest never sees zeros for its data.
#pragma once

#include <sys/types.h>

#include <span>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"
#include "uffd/userfaultfd.h"

namespace fileballoon::faultd {

class KeeperGuard {
 public:
  /// Starts the guard: this very program again, as `--guard --pid PID`. Pid of the VMM.
  [[nodiscard]] static Result<KeeperGuard> start(std::span<const Userfaultfd> userfaultfds,
                                                 pid_t pid);
  KeeperGuard(KeeperGuard&&) = default;
  KeeperGuard& operator=(KeeperGuard&&) = default;
  KeeperGuard(const KeeperGuard&) = delete;
  KeeperGuard& operator=(const KeeperGuard&) = delete;
  ~KeeperGuard() = default;

  /// Nothing is paged out any more: the guard ends.
  void dismiss();

  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  KeeperGuard(UniqueFd leash, pid_t pid) : leash_(std::move(leash)), pid_(pid) {}
  UniqueFd leash_;  // its end without a word means that the keeper died
  pid_t pid_ = 0;
};

/// The guard's main program. Returns its exit status.
[[nodiscard]] int run_guard(pid_t vmm);

}  // namespace fileballoon::faultd
