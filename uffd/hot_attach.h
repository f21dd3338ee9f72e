// Hot attach: a userfaultfd for the memory of a running, unmodified process. A userfaultfd belongs
// to the memory of the process that created it, so the process has to create it itself: one of its
// threads is stopped by ptrace(2), executes userfaultfd(2), the descriptor is fetched with
// pidfd_getfd(2) and closed there, and the thread goes on exactly where it was. All other threads
// run on all the time; the stopped one loses well under a millisecond. Called at attach.
#pragma once

#include <chrono>
#include <vector>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"
#include "uffd/process.h"
#include "uffd/userfaultfd.h"

namespace fileballoon {

struct HotAttachment {
  std::vector<UniqueFd> descriptors;   ///< fresh userfaultfds, not negotiated yet
  std::chrono::nanoseconds stopped{};  ///< how long the one thread was stopped
  pid_t thread = 0;                    ///< which one it was
};

/// Makes `process` create `count` userfaultfds. Whatever happens the process is left as it was
/// (registers, signal mask, pending signals, an interrupted system call); the error says what is in
/// the way: it is gone, 32-bit, traced by somebody else, not ours to trace, its seccomp filter
/// forbids the call, vm.unprivileged_userfaultfd forbids it, no thread could be stopped.
[[nodiscard]] Result<HotAttachment> hot_attach(const Process& process, unsigned count = 1);

/// The same, negotiated with `required` and `wanted` features.
[[nodiscard]] Result<std::vector<Userfaultfd>> hot_attach_negotiated(const Process& process,
                                                                     unsigned count,
                                                                     UffdFeatures required,
                                                                     UffdFeatures wanted = {});

}  // namespace fileballoon
