#include "uffd/tracee.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

namespace fileballoon {
namespace {

constexpr std::array<unsigned char, 2> kSyscall = {0x0f, 0x05};
// How long a stopped thread may take to begin an injected call; it needs microseconds.
constexpr std::chrono::milliseconds kCallPatience{1000};
constexpr auto kNever = Tracee::Clock::time_point::max();

bool read_remote(pid_t pid, std::uint64_t address, void* into, std::size_t size) {
  const iovec local{into, size};
  const iovec remote{reinterpret_cast<void*>(address), size};
  return ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

bool write_remote(pid_t pid, std::uint64_t address, std::string_view bytes) {
  const iovec local{const_cast<char*>(bytes.data()), bytes.size()};
  const iovec remote{reinterpret_cast<void*>(address), bytes.size()};
  return ::process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes.size());
}

bool is_syscall_instruction(pid_t pid, std::uint64_t address) {
  std::array<unsigned char, 2> bytes{};
  return read_remote(pid, address, bytes.data(), bytes.size()) && bytes == kSyscall;
}

// A stop makes these return EINTR even where no signal handler runs (signal(7), "Interruption of
// system calls and library functions by stop signals"); done again they have lost nothing.
bool repeat_after_stop(std::uint64_t number) {
  switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
      return true;
    default:
      return false;
  }
}

}  // namespace

Tracee::Tracee(Tracee&& other) noexcept
    : process_(other.process_),
      tid_(other.tid_),
      attached_(std::exchange(other.attached_, false)),
      stopped_(other.stopped_),
      changed_(other.changed_),
      at_event_stop_(other.at_event_stop_),
      stopped_at_(other.stopped_at_),
      saved_(other.saved_),
      saved_mask_(other.saved_mask_),
      lent_at_(std::exchange(other.lent_at_, 0)),
      lent_over_(std::move(other.lent_over_)) {}

Tracee::~Tracee() { (void)release(); }

// Waits for the next stop that concerns us. Signals that arrive on the way are handed on.
Tracee::Stop Tracee::wait(Clock::time_point deadline) {
  for (unsigned i = 0;; ++i) {
    int status = 0;
    const pid_t got = ::waitpid(tid_, &status, __WALL | WNOHANG);
    if (got == 0) {
      if (Clock::now() > deadline) {
        return Stop::timeout;
      }
      if (i > 200) {
        std::this_thread::sleep_for(std::chrono::microseconds(i > 20'000 ? 5000 : 50));
      } else {
        std::this_thread::yield();
      }
      continue;
    }
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0 || WIFEXITED(status) || WIFSIGNALED(status)) {
      attached_ = false;
      return Stop::dead;
    }
    if (status >> 16 == PTRACE_EVENT_STOP) {
      return Stop::event;
    }
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      return Stop::system_call;
    }
    // A signal on its way to the thread: let it have it, and wait for our stop again.
    (void)::ptrace(in_call_ ? PTRACE_SYSCALL : PTRACE_CONT, tid_, nullptr,
                   static_cast<long>(WSTOPSIG(status)));
  }
}

Result<Tracee> Tracee::stop(const Process& process, pid_t tid, std::chrono::milliseconds patience) {
  Tracee tracee(process, tid);
  if (::ptrace(PTRACE_SEIZE, tid, nullptr, static_cast<long>(PTRACE_O_TRACESYSGOOD)) != 0) {
    const int error = errno;
    if (error == ESRCH) {
      return Error{process.label() + ": thread " + std::to_string(tid) + " has exited"};
    }
    auto now = inspect_process(process.pid);
    if (now.has_value() && now->tracer != 0) {
      return Error{process.label() + " is being traced by pid " + std::to_string(now->tracer) +
                   " (a debugger or strace): detach that first"};
    }
    return Error{process.label() + " may not be traced by this user (" + std::strerror(error) +
                 "): it belongs to uid " + std::to_string(process.uid) +
                 "; run as root or with CAP_SYS_PTRACE, and see kernel.yama.ptrace_scope"};
  }
  tracee.attached_ = true;
  tracee.stopped_at_ = Clock::now();
  if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0) {
    return Error{process.label() + ": cannot stop thread " + std::to_string(tid) + ": " +
                 std::strerror(errno)};
  }
  switch (tracee.wait(Clock::now() + patience)) {
    case Stop::event:
      break;
    case Stop::dead:
      return Error{process.label() + " died while it was being stopped"};
    default:
      // Not stopped, so it cannot be detached; the end of this tracing thread releases it.
      tracee.attached_ = false;
      return Error{process.label() + ": thread " + std::to_string(tid) +
                   " does not stop (it is in an uninterruptible sleep)"};
  }
  tracee.stopped_ = true;
  tracee.at_event_stop_ = true;
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &tracee.saved_) != 0 ||
      ::ptrace(PTRACE_GETSIGMASK, tid, sizeof tracee.saved_mask_, &tracee.saved_mask_) != 0) {
    return Error{process.label() + ": cannot read the registers of thread " + std::to_string(tid) +
                 ": " + std::strerror(errno)};
  }
  constexpr unsigned long kUser64 = 0x33;  // __USER_CS; 0x23 is 32-bit code
  if (tracee.saved_.cs != kUser64) {
    return Error{process.label() + " runs 32-bit code: only 64-bit VMMs can be attached"};
  }
  return tracee;
}

bool Tracee::in_system_call() const {
  return static_cast<std::int64_t>(saved_.orig_rax) >= 0 &&
         is_syscall_instruction(process_->pid, saved_.rip - kSyscall.size());
}

bool Tracee::in_restartable_sequence() const {
  if (static_cast<std::int64_t>(saved_.orig_rax) >= 0) {
    return false;  // system calls are forbidden inside
  }
  __ptrace_rseq_configuration rseq{};
  if (::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid_, sizeof rseq, &rseq) <= 0 ||
      rseq.rseq_abi_pointer == 0) {
    return false;
  }
  std::uint64_t section = 0;  // struct rseq: rseq_cs lies at 8
  return !read_remote(process_->pid, rseq.rseq_abi_pointer + 8, &section, sizeof section) ||
         section != 0;
}

Result<std::uint64_t> Tracee::find_instruction() const {
  if (in_system_call()) {
    return saved_.rip - kSyscall.size();
  }
  std::ifstream maps("/proc/" + std::to_string(process_->pid) + "/maps");
  std::vector<std::pair<std::uint64_t, std::uint64_t>> code;
  std::string line;
  while (std::getline(maps, line)) {
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    char permissions[5] = {};
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, permissions) != 3 ||
        permissions[2] != 'x' || permissions[0] != 'r' || permissions[1] == 'w') {
      continue;
    }
    const bool vdso = line.find("[vdso]") != std::string::npos;
    code.insert(vdso ? code.begin() : code.end(), {start, end});
  }
  std::vector<unsigned char> bytes(1 << 16);
  for (const auto& [start, end] : code) {
    for (std::uint64_t at = start; at + 2 <= end; at += bytes.size() - 1) {
      const std::size_t size = std::min<std::uint64_t>(bytes.size(), end - at);
      if (!read_remote(process_->pid, at, bytes.data(), size)) {
        break;
      }
      const auto found = std::search(bytes.begin(), bytes.begin() + static_cast<long>(size),
                                     kSyscall.begin(), kSyscall.end());
      if (found != bytes.begin() + static_cast<long>(size)) {
        return at + static_cast<std::uint64_t>(found - bytes.begin());
      }
    }
  }
  return Error{process_->label() + ": no system call instruction found in its code"};
}

Tracee::Stop Tracee::resume_to_system_call_stop(Clock::time_point deadline) {
  for (;;) {
    if (::ptrace(PTRACE_SYSCALL, tid_, nullptr, nullptr) != 0) {
      return Stop::dead;
    }
    at_event_stop_ = false;
    stopped_ = false;
    const Stop stop = wait(deadline);
    stopped_ = stop == Stop::event || stop == Stop::system_call;
    if (stop != Stop::event) {
      return stop;
    }
    at_event_stop_ = true;  // a group stop (SIGSTOP) on its way; it is reinstated at detach
  }
}

// Lets the thread go as far as the entry of its injected call, or stops it again before that
// (Stop::event) where it does not get there. A thread in a frozen cgroup can be stopped and have
// its registers set, and runs nothing (seen with cgroup v2 on Linux 6.18).
Tracee::Stop Tracee::start_call() {
  Stop stop = resume_to_system_call_stop(Clock::now() + kCallPatience);
  if (stop == Stop::timeout) {
    (void)::ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr);
    stop = wait(kNever);
    stopped_ = stop != Stop::dead;
    at_event_stop_ = stop == Stop::event;
  }
  return stop;
}

Result<std::int64_t> Tracee::call(std::uint64_t instruction, int number,
                                  std::array<std::uint64_t, 6> arguments) {
  const auto died = [&] { return Error{process_->label() + " died while it was being attached"}; };
  if (!changed_) {
    // No handler may run on these registers; pending signals stay pending.
    std::uint64_t all = ~0ULL;
    if (::ptrace(PTRACE_SETSIGMASK, tid_, sizeof all, &all) != 0) {
      return died();
    }
    changed_ = true;
  }
  user_regs_struct regs = saved_;
  regs.rip = instruction;
  regs.rax = static_cast<std::uint64_t>(number);
  regs.orig_rax = ~0ULL;  // "not in a system call": the kernel must not restart anything here
  regs.rdi = arguments[0];
  regs.rsi = arguments[1];
  regs.rdx = arguments[2];
  regs.r10 = arguments[3];
  regs.r8 = arguments[4];
  regs.r9 = arguments[5];
  if (::ptrace(PTRACE_SETREGS, tid_, nullptr, &regs) != 0) {
    return died();
  }
  in_call_ = true;
  const Stop begun = start_call();
  // Once begun it is waited for: left alone it might leave a descriptor behind.
  const bool done = begun == Stop::system_call &&
                    resume_to_system_call_stop(kNever) == Stop::system_call &&
                    ::ptrace(PTRACE_GETREGS, tid_, nullptr, &regs) == 0;
  in_call_ = false;
  if (begun == Stop::event) {
    return Error{process_->label() + ": thread " + std::to_string(tid_) +
                 " does not run (its cgroup is frozen, or it gets no CPU); it was left as it was"};
  }
  if (!done) {
    return died();
  }
  return static_cast<std::int64_t>(regs.rax);
}

std::optional<std::uint64_t> Tracee::lend(std::string_view bytes) {
  give_back();
  // System V ABI for x86-64, 3.2.2: a leaf function may use 128 bytes below RSP, and nobody less.
  constexpr std::uint64_t kRedZone = 128;
  const std::uint64_t at = (saved_.rsp - kRedZone - bytes.size()) & ~std::uint64_t{15};
  lent_over_.resize(bytes.size());
  if (!read_remote(process_->pid, at, lent_over_.data(), lent_over_.size()) ||
      !write_remote(process_->pid, at, bytes)) {
    return std::nullopt;
  }
  lent_at_ = at;
  return at;
}

void Tracee::give_back() {
  if (lent_at_ != 0) {
    (void)write_remote(process_->pid, lent_at_, lent_over_);
    lent_at_ = 0;
  }
}

bool Tracee::release() {
  if (!attached_) {
    return false;
  }
  attached_ = false;
  if (!stopped_) {
    return false;
  }
  give_back();
  if (!changed_) {
    return ::ptrace(PTRACE_DETACH, tid_, nullptr, nullptr) == 0;
  }
  // The thread's own system call may have to be restarted, and the kernel does that only on the way
  // out of a stop like the first one (arch_do_signal_or_restart): at a system-call stop the
  // restored -ERESTART… would leak to the program. So it is brought to such a stop again.
  if (!at_event_stop_) {
    attached_ = true;
    (void)::ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr);
    if (::ptrace(PTRACE_CONT, tid_, nullptr, nullptr) != 0 || wait(kNever) != Stop::event) {
      attached_ = false;
      return false;
    }
    attached_ = false;
  }
  user_regs_struct regs = saved_;
  if (static_cast<std::int64_t>(regs.rax) == -EINTR &&
      static_cast<std::int64_t>(regs.orig_rax) >= 0 && repeat_after_stop(regs.orig_rax)) {
    regs.rip -= kSyscall.size();
    regs.rax = regs.orig_rax;
    regs.orig_rax = ~0ULL;
  }
  const bool restored = ::ptrace(PTRACE_SETREGS, tid_, nullptr, &regs) == 0 &&
                        ::ptrace(PTRACE_SETSIGMASK, tid_, sizeof saved_mask_, &saved_mask_) == 0;
  return ::ptrace(PTRACE_DETACH, tid_, nullptr, nullptr) == 0 && restored;
}

}  // namespace fileballoon
