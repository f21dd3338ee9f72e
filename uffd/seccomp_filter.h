// What a process's seccomp filters would do to one system call, found by running the filters on it.
// Hot attach asks before it makes a VMM execute userfaultfd(2): a filter may answer a forbidden
// call by killing the process, and then there is nothing left to attach to. Stateless.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <vector>

#include "fileballoon/result.h"

namespace fileballoon {

/// The SECCOMP_RET_… value (action and data) that the classic BPF program `filter` gives for x86-64
/// system call `number` with `arguments`, by the `syscall` at address `instruction`;
/// SECCOMP_RET_KILL_PROCESS for a program that is not valid (the kernel would not have taken it).
[[nodiscard]] std::uint32_t run_filter(std::span<const sock_filter> filter, int number,
                                       std::span<const std::uint64_t, 6> arguments,
                                       std::uint64_t instruction);

/// True where the action lets the call run.
[[nodiscard]] bool allows(std::uint32_t action);

/// The filters in force on the stopped, traced thread `tid`, latest first. Needs CAP_SYS_ADMIN and
/// CONFIG_CHECKPOINT_RESTORE (PTRACE_SECCOMP_GET_FILTER, ptrace(2)).
[[nodiscard]] Result<std::vector<std::vector<sock_filter>>> read_filters(int tid);

}  // namespace fileballoon
