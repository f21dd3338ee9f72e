// StandIn: starts and commands the program of uffd_stand_in.cc, and ends it with the test.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "fileballoon/unique_fd.h"

namespace fileballoon::testing {

class StandIn {
 public:
  explicit StandIn(std::vector<std::string> arguments = {}) {
    int to[2];
    int from[2];
    if (::pipe2(to, O_CLOEXEC) != 0 || ::pipe2(from, O_CLOEXEC) != 0) {
      throw std::runtime_error("pipe2 failed");
    }
    arguments.insert(arguments.begin(), FILEBALLOON_STAND_IN);
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (auto& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(to[0]);
    ::close(from[1]);
    in_ = UniqueFd(to[1]);
    out_ = ::fdopen(from[0], "r");
    if (error != 0) {
      throw std::runtime_error("cannot start the stand-in VMM");
    }
    const std::string ready = read_line();
    if (!ready.starts_with("ready ")) {
      throw std::runtime_error("the stand-in VMM did not start: " + ready);
    }
    address_ = std::stoull(ready.substr(6));
  }
  StandIn(const StandIn&) = delete;
  StandIn& operator=(const StandIn&) = delete;
  ~StandIn() {
    kill_and_wait();
    ::fclose(out_);
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] std::uint64_t address() const { return address_; }

  /// Sends without waiting for the answer (a command that will fault).
  void send(const std::string& command) {
    const std::string line = command + "\n";
    if (::write(in_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      throw std::runtime_error("the stand-in VMM is gone");
    }
  }
  std::string read_line() {
    char buffer[256] = {};
    if (::fgets(buffer, sizeof buffer, out_) == nullptr) {
      return "(end)";
    }
    std::string line = buffer;
    while (!line.empty() && line.back() == '\n') {
      line.pop_back();
    }
    return line;
  }
  std::string ask(const std::string& command) {
    send(command);
    return read_line();
  }
  void kill_and_wait() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }

 private:
  pid_t pid_ = -1;
  std::uint64_t address_ = 0;
  UniqueFd in_;
  FILE* out_ = nullptr;
};

}  // namespace fileballoon::testing
