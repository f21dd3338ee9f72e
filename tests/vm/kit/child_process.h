// ChildProcess: a program started by a test, ended with it. The kernel kills it when the thread
// that started it ends (PR_SET_PDEATHSIG), so nothing is left behind by a test that crashes or is
// killed. Start it from a thread that outlives it. One thread at a time per object.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace fileballoon::vmkit {

class ChildProcess {
 public:
  /// Runs argv[0] (found in PATH), its output appended to `log` ("/dev/null" to lose it). Throws
  /// std::system_error where it cannot be run.
  ChildProcess(const std::vector<std::string>& argv, const std::string& log);
  ~ChildProcess();  ///< SIGKILL, and reaped
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// False once it has ended (and reaps it).
  [[nodiscard]] bool running();
  void signal(int number);
  /// Waits for the end; the wait status, or nothing if it still runs after `timeout`.
  std::optional<int> wait(std::chrono::milliseconds timeout);
  /// User and system time of all its threads so far, seconds; exact (CPU-time clock), not sampled.
  [[nodiscard]] double cpu_seconds() const;
  /// VmRSS and the peak of it, KiB; 0 when it is gone.
  [[nodiscard]] std::uint64_t rss_kib() const;

 private:
  pid_t pid_ = -1;
  std::optional<int> status_;
};

/// The last `lines` lines of a text file; says so where there is none.
[[nodiscard]] std::string tail_of(const std::string& path, std::size_t lines);

struct CommandResult {
  int status = 0;  ///< exit status; 128 + n for signal n
  std::string out;
  std::string err;
};

/// Runs a command to its end and returns what it wrote. Throws std::system_error where it cannot be
/// run, std::runtime_error where it takes longer than `timeout` (it is killed then).
[[nodiscard]] CommandResult run_command(
    const std::vector<std::string>& argv,
    std::chrono::milliseconds timeout = std::chrono::seconds(30));

}  // namespace fileballoon::vmkit
