// Task: one piece of work in a process of its own, so that the guest's server (PID 1) never blocks
// and so that what the kernel kills for want of memory is the work and not the server. A task
// answers its request with one JSON object over a pipe; some stay on and take further orders.
// Single-threaded, used by the server only.
#pragma once

#include <sys/types.h>

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <functional>
#include <optional>
#include <string>

namespace fileballoon::guest {

/// Talks with the server from inside a task.
class TaskPort {
 public:
  explicit TaskPort(int fd) : fd_(fd) {}
  /// Answers the request in hand.
  void reply(const boost::json::object& result);
  void fail(const std::string& why);
  /// The next order for this task; nothing when the server has closed it.
  [[nodiscard]] std::optional<boost::json::object> next_order();

 private:
  void send(const boost::json::object& message);
  int fd_;
  std::string buffer_;
};

class Task {
 public:
  using Body = std::function<void(TaskPort&)>;

  /// Forks a process that runs `body` and exits. Throws std::system_error.
  explicit Task(const Body& body);
  ~Task();  ///< kills the process with SIGKILL and reaps it
  Task(Task&& other) noexcept;
  Task& operator=(Task&&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int fd() const { return fd_; }

  void order(const boost::json::object& order);
  /// Reads what has arrived; the reply, if whole. `closed()` is true once the process is gone.
  [[nodiscard]] std::optional<boost::json::object> read_reply();
  [[nodiscard]] bool closed() const { return closed_; }
  /// After closed(): how the process ended, in words.
  [[nodiscard]] std::string end();

 private:
  pid_t pid_ = -1;
  int fd_ = -1;
  bool closed_ = false;
  std::string buffer_;
};

}  // namespace fileballoon::guest
