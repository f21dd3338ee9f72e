#include "tests/vm/kit/temp_dir.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>

namespace fileballoon::vmkit {
namespace fs = std::filesystem;
namespace {

// Not $TMPDIR: the sockets in here must fit the 107 characters of a UNIX address.
constexpr const char* kPrefix = "/tmp/fileballoon-";

std::mutex registry_lock;
std::set<std::string>& registry() {
  static std::set<std::string> paths;
  return paths;
}

void remove(const std::string& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

// Folders of processes that are no more, SIGKILL for instance; once per process.
void sweep() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/tmp", error)) {
    const std::string path = entry.path();
    if (!path.starts_with(kPrefix)) continue;
    const auto first = path.find('.');
    const auto second = path.find('.', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const int pid = std::atoi(path.substr(first + 1, second - first - 1).c_str());
    if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) remove(path);
  }
}

}  // namespace

TempDir::TempDir(const std::string& purpose)
    : path_(kPrefix + purpose + "." + std::to_string(getpid()) + ".XXXXXX") {
  static std::once_flag swept;
  std::call_once(swept, sweep);
  const std::lock_guard lock(registry_lock);
  if (mkdtemp(path_.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp " + path_);
  }
  registry().insert(path_);
}

TempDir::~TempDir() {
  const std::lock_guard lock(registry_lock);
  registry().erase(path_);
  remove(path_);
}

void exit_cleanly_on_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, number);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    int number = 0;
    sigwait(&set, &number);
    const std::lock_guard lock(registry_lock);
    for (const std::string& path : registry()) remove(path);
    _exit(128 + number);
  }).detach();
}

}  // namespace fileballoon::vmkit
