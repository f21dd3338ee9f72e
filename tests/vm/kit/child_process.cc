#include "tests/vm/kit/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <deque>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "fileballoon/process_cpu.h"
#include "tests/eventually.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::vmkit {
namespace {

constexpr auto kExitPoll = std::chrono::milliseconds(2);

// Never returns. On failure writes errno to `report`, which a successful exec closes.
[[noreturn]] void exec_child(const std::vector<char*>& argv, int out, int err, int report,
                             pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it died before we asked
  setpgid(0, 0);                        // Ctrl-C is for the test, which then ends this
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  dup2(in, 0);
  dup2(out, 1);
  dup2(err, 2);
  execvp(argv[0], argv.data());
  const int error = errno;
  (void)!write(report, &error, sizeof error);
  _exit(127);
}

pid_t start(const std::vector<std::string>& arguments, int out, int err) {
  std::vector<char*> argv;
  for (const std::string& word : arguments) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0)
    throw std::system_error(errno, std::generic_category(), "pipe");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) exec_child(argv, out, err, report[1], parent);
  const int fork_error = errno;
  close(report[1]);
  int error = 0;
  ssize_t n = 0;
  while (pid > 0 && (n = read(report[0], &error, sizeof error)) < 0 && errno == EINTR) {
  }
  close(report[0]);
  if (pid < 0) throw std::system_error(fork_error, std::generic_category(), "fork");
  if (n == sizeof error) {
    waitpid(pid, nullptr, 0);
    throw std::system_error(error, std::generic_category(), "cannot run " + arguments[0]);
  }
  return pid;
}

int open_log(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "open " + path);
  return fd;
}

std::string whole(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& argv, const std::string& log) {
  const int fd = open_log(log);
  try {
    pid_ = start(argv, fd, fd);
  } catch (...) {
    close(fd);
    throw;
  }
  close(fd);
}

ChildProcess::~ChildProcess() {
  if (running()) {
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

bool ChildProcess::running() {
  if (status_) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
  return !status_;
}

void ChildProcess::signal(int number) {
  if (running()) ::kill(pid_, number);
}

std::optional<int> ChildProcess::wait(std::chrono::milliseconds timeout) {
  (void)eventually([&] { return !running(); }, timeout, kExitPoll);
  return status_;
}

double ChildProcess::cpu_seconds() const { return status_ ? 0 : cpu_seconds_of(pid_); }

std::uint64_t ChildProcess::rss_kib() const {
  std::ifstream lines("/proc/" + std::to_string(pid_) + "/status");
  std::string key;
  std::uint64_t value = 0;
  while (lines >> key) {
    if (key == "VmRSS:" && lines >> value) return value;
    std::getline(lines, key);
  }
  return 0;
}

std::string tail_of(const std::string& path, std::size_t lines) {
  std::ifstream file(path);
  if (!file) return "(no " + path + ")";
  std::deque<std::string> last;
  std::string line;
  while (std::getline(file, line)) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    last.push_back(line);
    if (last.size() > lines) last.pop_front();
  }
  std::string text;
  for (const std::string& one : last) text += one + "\n";
  return text;
}

CommandResult run_command(const std::vector<std::string>& argv, std::chrono::milliseconds timeout) {
  const TempDir dir("command");
  const int out = open_log(dir.file("out"));
  const int err = open_log(dir.file("err"));
  pid_t pid = -1;
  try {
    pid = start(argv, out, err);
  } catch (...) {
    close(out);
    close(err);
    throw;
  }
  close(out);
  close(err);
  int status = 0;
  if (!eventually([&] { return waitpid(pid, &status, WNOHANG) != 0; }, timeout, kExitPoll)) {
    ::kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    throw std::runtime_error(argv[0] + " took longer than " + std::to_string(timeout.count()) +
                             " ms; it wrote: " + whole(dir.file("out")) + whole(dir.file("err")));
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), whole(dir.file("out")),
          whole(dir.file("err"))};
}

}  // namespace fileballoon::vmkit
