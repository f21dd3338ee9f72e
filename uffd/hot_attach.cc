#include "uffd/hot_attach.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "uffd/sandbox.h"
#include "uffd/tracee.h"

namespace fileballoon {
namespace {

constexpr std::chrono::milliseconds kExiting{50};
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

constexpr char kDevice[] = "/dev/userfaultfd";
constexpr char kSandboxRemedy[] =
    "; start it without a sandbox that forbids it (QEMU: without -sandbox on), or use "
    "--refault kernel";

using Arguments = std::array<std::uint64_t, 6>;

// What one stopped thread is made to execute.
class Maker {
 public:
  Maker(const Process& process, Tracee& tracee, std::uint64_t instruction, Sandbox sandbox)
      : process_(process),
        tracee_(tracee),
        instruction_(instruction),
        sandbox_(std::move(sandbox)) {}

  /// A userfaultfd in the process, by its number there: from the device where the process may open
  /// it (its permissions alone decide then), else by the system call.
  [[nodiscard]] Result<std::uint64_t> make() {
    // Descriptors are closed again, so a filter that forbids close(2) forbids all of it.
    if (!sandbox_.allows(SYS_close, {1000, 0, 0, 0, 0, 0})) {
      return forbidden();
    }
    auto from_device = make_from_device();
    if (from_device.has_error() || *from_device >= 0) {
      return answer(from_device);
    }
    const Arguments arguments = {kUffdFlags, 0, 0, 0, 0, 0};
    if (!sandbox_.allows(SYS_userfaultfd, arguments)) {
      return forbidden();
    }
    auto by_call = tracee_.call(instruction_, SYS_userfaultfd, arguments);
    if (by_call.has_error() || *by_call >= 0) {
      return answer(by_call);
    }
    return refused(static_cast<int>(-*by_call));
  }

  [[nodiscard]] Result<std::int64_t> close(std::uint64_t fd) {
    return tracee_.call(instruction_, SYS_close, {fd, 0, 0, 0, 0, 0});
  }

 private:
  static Result<std::uint64_t> answer(const Result<std::int64_t>& made) {
    if (made.has_error()) {
      return made.error();
    }
    return static_cast<std::uint64_t>(*made);
  }

  // Negative: not this way; device_ says why.
  [[nodiscard]] Result<std::int64_t> make_from_device() {
    const auto path = tracee_.lend({kDevice, sizeof kDevice});
    if (!path) {
      device_ = "its stack has no room for the path";
      return -1;
    }
    const Arguments open = {
        static_cast<std::uint64_t>(AT_FDCWD), *path, O_RDWR | O_CLOEXEC, 0, 0, 0};
    const Arguments make = {1000, USERFAULTFD_IOC_NEW, kUffdFlags, 0, 0, 0};
    if (!sandbox_.allows(SYS_openat, open) || !sandbox_.allows(SYS_ioctl, make)) {
      device_ = "its seccomp filter forbids opening it";
      return -1;
    }
    const auto device = tracee_.call(instruction_, SYS_openat, open);
    if (device.has_error() || *device < 0) {
      device_ = device.has_error() ? "" : std::strerror(static_cast<int>(-*device));
      return device;
    }
    const auto number = static_cast<std::uint64_t>(*device);
    auto made =
        tracee_.call(instruction_, SYS_ioctl, {number, USERFAULTFD_IOC_NEW, kUffdFlags, 0, 0, 0});
    if (made.has_value() && *made < 0) {
      device_ = std::strerror(static_cast<int>(-*made));
    }
    if (const auto closed = close(number); closed.has_error()) {
      return closed.error();
    }
    return made;
  }

  [[nodiscard]] Error forbidden() const {
    return Error{process_.label() + "'s seccomp filter forbids userfaultfd(2)" + kSandboxRemedy};
  }

  [[nodiscard]] Error refused(int error) const {
    if (error == EMFILE) {
      return Error{process_.label() + " has reached its limit of open files"};
    }
    return Error{process_.label() + " may not create a userfaultfd that sees kernel accesses (" +
                 kDevice + ": " + device_ + ", userfaultfd(2): " + std::strerror(error) +
                 "): give its user access to " + kDevice +
                 ", set vm.unprivileged_userfaultfd=1, or give it CAP_SYS_PTRACE; a kernel without "
                 "CONFIG_USERFAULTFD has none"};
  }

  const Process& process_;
  Tracee& tracee_;
  std::uint64_t instruction_;
  Sandbox sandbox_;
  std::string device_;
};

Result<HotAttachment> attach_with(const Process& process, Tracee& tracee, unsigned count) {
  const auto instruction = tracee.find_instruction();
  if (instruction.has_error()) {
    return instruction.error();
  }
  auto sandbox = Sandbox::of(process, tracee, *instruction);
  if (sandbox.has_error()) {
    return Error{sandbox.error().message + kSandboxRemedy};
  }
  Maker maker(process, tracee, *instruction, std::move(*sandbox));
  HotAttachment attachment;
  attachment.thread = tracee.tid();
  for (unsigned i = 0; i < count; ++i) {
    const auto made = maker.make();
    if (made.has_error()) {
      return made.error();
    }
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.pidfd.get(), *made, 0)));
    const int error = errno;
    const auto closed = maker.close(*made);
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
  return Error{last};
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
  // A process that exits may not be traced (EPERM) and has no code before it shows as gone.
  if (result.has_error() && !process.alive(kExiting)) {
    return Error{process.label() + " has exited while it was being attached"};
  }
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
