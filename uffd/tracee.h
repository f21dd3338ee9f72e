// Tracee: one thread of another process, stopped by ptrace(2) and made to execute system calls. The
// destructor puts everything back and lets it go, whatever happened before. All calls must come
// from the thread that constructed it (ptrace's rule).
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fileballoon/result.h"
#include "uffd/process.h"

namespace fileballoon {

class Tracee {
 public:
  using Clock = std::chrono::steady_clock;

  /// Seizes and stops `tid` of `process`; gives up after `patience` (a thread in an
  /// uninterruptible sleep does not stop), in which case it was not disturbed.
  [[nodiscard]] static Result<Tracee> stop(const Process& process, pid_t tid,
                                           std::chrono::milliseconds patience);

  Tracee(Tracee&& other) noexcept;
  Tracee& operator=(Tracee&&) = delete;
  Tracee(const Tracee&) = delete;
  Tracee& operator=(const Tracee&) = delete;
  ~Tracee();

  /// True where the thread was stopped inside a system call, the gentlest place.
  [[nodiscard]] bool in_system_call() const;
  /// True where it may be inside a restartable sequence (rseq(2)): its registers must then not be
  /// touched, since the kernel would not notice that the sequence was interrupted.
  [[nodiscard]] bool in_restartable_sequence() const;
  /// Where a `syscall` instruction lies in the target; needed by call(). Looks before RIP, then in
  /// the vDSO and the other code.
  [[nodiscard]] Result<std::uint64_t> find_instruction() const;
  [[nodiscard]] pid_t tid() const { return tid_; }
  [[nodiscard]] Clock::time_point stopped_at() const { return stopped_at_; }

  /// Executes one system call in the thread and gives its result (-errno on failure). A thread that
  /// does not begin it within a second, since it is frozen by its cgroup or gets no CPU, is stopped
  /// again and the error says so; then it has executed nothing.
  [[nodiscard]] Result<std::int64_t> call(std::uint64_t instruction, int number,
                                          std::array<std::uint64_t, 6> arguments);

  /// Puts `bytes` where the thread's calls can read them, and gives the address: below what its
  /// stack uses. Put back at the end; nothing where that part of the stack is not there.
  [[nodiscard]] std::optional<std::uint64_t> lend(std::string_view bytes);

  /// Restores and detaches now instead of on destruction. False where the thread died meanwhile.
  /// Waits for as long as it takes: a thread that is let go with the registers of somebody else's
  /// call, and all signals blocked, is a VMM that crashes.
  bool release();

 private:
  Tracee(const Process& process, pid_t tid) : process_(&process), tid_(tid) {}

  enum class Stop { event, system_call, dead, timeout };
  [[nodiscard]] Stop wait(Clock::time_point deadline);
  [[nodiscard]] Stop resume_to_system_call_stop(Clock::time_point deadline);
  [[nodiscard]] Stop start_call();
  void give_back();

  const Process* process_;
  pid_t tid_;
  bool attached_ = false;
  bool stopped_ = false;
  bool changed_ = false;
  bool at_event_stop_ = false;
  bool in_call_ = false;
  Clock::time_point stopped_at_{};
  user_regs_struct saved_{};
  std::uint64_t saved_mask_ = 0;
  std::uint64_t lent_at_ = 0;
  std::string lent_over_;  // what lay there before
};

}  // namespace fileballoon
