#include "uffd/hot_attach.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "uffd/seccomp_filter.h"
#include "uffd/tracee.h"

namespace fileballoon {
namespace {

constexpr std::uint64_t kUffdFlags = O_CLOEXEC | O_NONBLOCK;
constexpr std::chrono::milliseconds kStopPatience{100};

std::vector<pid_t> threads_of(pid_t pid) {
  std::vector<pid_t> threads;
  const std::string path = "/proc/" + std::to_string(pid) + "/task";
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  while (const dirent* entry = dir ? ::readdir(dir.get()) : nullptr) {
    if (const int tid = std::atoi(entry->d_name); tid > 0) {
      threads.push_back(tid);
    }
  }
  std::sort(threads.begin(), threads.end());
  // The main thread first: in a VMM it is the event loop, not a vCPU.
  std::stable_partition(threads.begin(), threads.end(), [&](pid_t tid) { return tid == pid; });
  return threads;
}

// What forbids `userfaultfd(2)` and `close(2)` to this stopped thread, if anything.
std::optional<Error> seccomp_objection(const Process& process, const Tracee& tracee,
                                       std::uint64_t instruction) {
  std::ifstream status("/proc/" + std::to_string(process.pid) + "/task/" +
                       std::to_string(tracee.tid()) + "/status");
  int mode = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Seccomp:")) {
      mode = std::atoi(line.c_str() + 8);
    }
  }
  const std::string remedy =
      "; start it without a sandbox that forbids it (QEMU: without "
      "-sandbox on), or use --refault kernel";
  if (mode == SECCOMP_MODE_DISABLED) {
    return std::nullopt;
  }
  if (mode == SECCOMP_MODE_STRICT) {
    return Error{process.label() + " runs in seccomp strict mode, which forbids userfaultfd(2)" +
                 remedy};
  }
  const auto filters = read_filters(tracee.tid());
  if (filters.has_error()) {
    return Error{process.label() + " has a seccomp filter, and " + filters.error().message +
                 ": it may kill the process for userfaultfd(2), so it is left alone" + remedy};
  }
  const std::array<std::uint64_t, 6> create = {kUffdFlags, 0, 0, 0, 0, 0};
  const std::array<std::uint64_t, 6> close = {1000, 0, 0, 0, 0, 0};
  for (const auto& filter : *filters) {
    if (!allows(run_filter(filter, SYS_userfaultfd, create, instruction)) ||
        !allows(run_filter(filter, SYS_close, close, instruction))) {
      return Error{process.label() + "'s seccomp filter forbids userfaultfd(2)" + remedy};
    }
  }
  return std::nullopt;
}

Error creation_failed(const Process& process, std::int64_t result) {
  const int error = static_cast<int>(-result);
  std::string why = std::strerror(error);
  if (error == EPERM) {
    why =
        "it may not create a userfaultfd that sees kernel accesses: set "
        "vm.unprivileged_userfaultfd=1 or give it CAP_SYS_PTRACE";
  } else if (error == ENOSYS) {
    why = "this kernel has no userfaultfd, or a sandbox hides it";
  } else if (error == EMFILE) {
    why = "it has reached its limit of open files";
  }
  return Error{process.label() + ": userfaultfd(2) failed in it: " + why};
}

Result<HotAttachment> attach_with(const Process& process, Tracee& tracee, unsigned count) {
  const auto instruction = tracee.find_instruction();
  if (instruction.has_error()) {
    return instruction.error();
  }
  if (auto objection = seccomp_objection(process, tracee, *instruction)) {
    return *objection;
  }
  HotAttachment attachment;
  attachment.thread = tracee.tid();
  for (unsigned i = 0; i < count; ++i) {
    const auto made = tracee.call(*instruction, SYS_userfaultfd, {kUffdFlags, 0, 0, 0, 0, 0});
    if (made.has_error()) {
      return made.error();
    }
    if (*made < 0) {
      return creation_failed(process, *made);
    }
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.pidfd.get(), *made, 0)));
    const int error = errno;
    const auto closed =
        tracee.call(*instruction, SYS_close, {static_cast<std::uint64_t>(*made), 0, 0, 0, 0, 0});
    if (!fd.valid()) {
      return Error{process.label() +
                   ": its userfaultfd cannot be fetched: " + std::strerror(error)};
    }
    if (closed.has_error()) {
      return closed.error();
    }
    attachment.descriptors.push_back(std::move(fd));
  }
  const auto stopped_at = tracee.stopped_at();
  if (!tracee.release()) {
    return Error{process.label() + " died while it was being attached"};
  }
  attachment.stopped = Tracee::Clock::now() - stopped_at;
  return attachment;
}

Result<HotAttachment> attach_any_thread(const Process& process, unsigned count) {
  std::string last = process.label() + " has no thread that could be stopped";
  // Twice: first only threads that are inside a system call, the gentlest place to stop one; a
  // process whose threads all compute is taken in the second round.
  for (const bool anywhere : {false, true}) {
    for (const pid_t tid : threads_of(process.pid)) {
      auto tracee = Tracee::stop(process, tid, kStopPatience);
      if (tracee.has_error()) {
        last = tracee.error().message;
        continue;
      }
      if ((!anywhere && !tracee->in_system_call()) || tracee->in_restartable_sequence()) {
        last = process.label() + " could not be stopped at a safe place; try again";
        continue;
      }
      return attach_with(process, *tracee, count);
    }
  }
  return Error{process.alive() ? last : process.label() + " has exited"};
}

}  // namespace

Result<HotAttachment> hot_attach(const Process& process, unsigned count) {
  if (!process.alive()) {
    return Error{process.label() + " has exited"};
  }
  if (!process.is_64_bit) {
    return Error{process.label() + " is a 32-bit program: only 64-bit VMMs can be attached"};
  }
  if (process.tracer != 0) {
    return Error{process.label() + " is being traced by pid " + std::to_string(process.tracer) +
                 " (a debugger or strace): detach that first"};
  }
  // A thread of its own: whatever goes wrong, its end makes the kernel detach every tracee.
  Result<HotAttachment> result = Error{"not run"};
  std::thread([&] { result = attach_any_thread(process, count); }).join();
  return result;
}

Result<std::vector<Userfaultfd>> hot_attach_negotiated(const Process& process, unsigned count,
                                                       UffdFeatures required, UffdFeatures wanted) {
  auto attachment = hot_attach(process, count);
  if (attachment.has_error()) {
    return attachment.error();
  }
  std::vector<Userfaultfd> result;
  for (UniqueFd& fd : attachment->descriptors) {
    auto uffd = Userfaultfd::negotiate(std::move(fd), required, wanted);
    if (uffd.has_error()) {
      return Error{process.label() + ": " + uffd.error().message};
    }
    result.push_back(std::move(*uffd));
  }
  return result;
}

}  // namespace fileballoon
