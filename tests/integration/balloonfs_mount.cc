#include "tests/integration/balloonfs_mount.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "fileballoon/unique_fd.h"
#include "guest-fs/balloon_file.h"
#include "tests/eventually.h"

namespace fileballoon::test {
namespace {

std::string read_all(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The program in a child process; ends with this thread. Between fork(2) and exec(2) nothing may
/// be allocated: the stand-in for the host is a thread of this process, and a lock of the allocator
/// that it held at that moment stays locked in the child for ever (glibc's own takes care of that,
/// that of a sanitizer does not).
pid_t spawn(const std::vector<std::string>& arguments, int output_fd) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid != 0) {
    return pid;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(output_fd, STDOUT_FILENO);
  ::dup2(output_fd, STDERR_FILENO);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

int exit_status(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::string why_no_balloonfs() {
  if (::geteuid() != 0) {
    return "needs root to mount";
  }
  if (::access("/dev/fuse", R_OK | W_OK) != 0) {
    return "needs /dev/fuse";
  }
  return {};
}

RunResult run_program(const std::vector<std::string>& arguments) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "pipe2");
  }
  const pid_t pid = spawn(arguments, ends[1]);
  ::close(ends[1]);
  RunResult result;
  char buffer[4096];
  ssize_t got = 0;
  while ((got = ::read(ends[0], buffer, sizeof buffer)) > 0) {
    result.output.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(pid, &status, 0);
  result.status = exit_status(status);
  return result;
}

BalloonMount::BalloonMount() : folder_("/tmp/balloonfs-test.XXXXXX") {
  if (::mkdtemp(folder_.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp");
  }
  ::mkdir(mount_point().c_str(), 0755);
}

BalloonMount::~BalloonMount() {
  stop();
  while (::umount2(mount_point().c_str(), MNT_DETACH) == 0) {
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

bool BalloonMount::start(const std::string& options) {
  const int log =
      ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  pid_ = spawn({BALLOONFS_PROGRAM, mount_point(), "-f", "-o", options}, log);
  ::close(log);
  const auto mounted = [&] {
    return output().find("balloon on ") != std::string::npos && number("target_bytes") >= 0;
  };
  bool ended = false;
  (void)eventually(
      [&] {
        ended = ::waitpid(pid_, nullptr, WNOHANG) == pid_;
        return ended || mounted();
      },
      std::chrono::seconds(30));
  if (ended) {
    pid_ = 0;
  }
  return !ended && mounted();
}

int BalloonMount::stop() {
  if (pid_ == 0) {
    return -1;
  }
  ::kill(pid_, SIGTERM);
  const int status = wait_end(15);
  if (status < 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  return status;
}

void BalloonMount::evict() const {
  const pid_t inflater = child("balloonfs-infl");
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, inflater, 0)));
  bool found = false;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(inflater) + "/fd")) {
    // Its own handle: balloonfs lets nobody else open the file.
    const int number = std::stoi(entry.path().filename());
    const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
    struct stat status {};
    if (fd.valid() && ::fstat(fd.get(), &status) == 0 && S_ISREG(status.st_mode) &&
        static_cast<std::uint64_t>(status.st_size) == guest::kBalloonFileSize) {
      found = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED) == 0 || found;
    }
  }
  if (!found) {
    throw std::runtime_error("the inflater has no balloon file open");
  }
}

int BalloonMount::wait_end(int seconds) {
  int status = 0;
  const auto ended = [&] { return pid_ == 0 || ::waitpid(pid_, &status, WNOHANG) == pid_; };
  if (!eventually(ended, std::chrono::seconds(seconds))) {
    return -1;
  }
  pid_ = 0;
  return exit_status(status);
}

std::string BalloonMount::output() const { return read_all(folder_ + "/log"); }

std::string BalloonMount::stats() const { return read_all(file("stats")); }

long BalloonMount::number(const std::string& key) const {
  const std::string text = stats();
  const auto at = text.find("\"" + key + "\": ");
  return at == std::string::npos ? -1 : std::atol(text.c_str() + at + key.size() + 4);
}

int BalloonMount::write(const std::string& name, const std::string& text) const {
  const int fd = ::open(file(name).c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
  if (fd < 0) {
    return errno;
  }
  const ssize_t written = ::write(fd, text.data(), text.size());
  const int error = written == static_cast<ssize_t>(text.size()) ? 0 : errno;
  ::close(fd);
  return error;
}

pid_t BalloonMount::child(const std::string& name) const {
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string stat = read_all(entry.path() / "stat");
    const auto open = stat.find('(');
    const auto close = stat.rfind(')');
    if (open == std::string::npos || stat.substr(open + 1, close - open - 1) != name) {
      continue;
    }
    const int parent = std::atoi(stat.c_str() + close + 4);
    if (parent == pid_ ||
        (parent > 0 && parent == child("balloonfs-infl") && name != "balloonfs-infl")) {
      return std::atoi(entry.path().filename().c_str());
    }
  }
  return 0;
}

bool BalloonMount::is_mounted() const {
  return read_all("/proc/self/mountinfo").find(" " + mount_point() + " ") != std::string::npos;
}

void BalloonfsTest::SetUp() {
  if (const std::string why = why_no_balloonfs(); !why.empty()) {
    GTEST_SKIP() << why;
  }
}

void BalloonfsTest::TearDown() {
  if (HasFailure()) {
    std::cout << "--- balloonfs said:\n" << mount_.output() << mount_.stats();
  }
}

}  // namespace fileballoon::test
