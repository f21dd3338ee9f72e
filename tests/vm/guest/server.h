// Server: what runs as PID 1 in a test guest. It answers requests that arrive as JSON lines on a
// virtio-serial port ({"id":1,"verb":"meminfo",…} → {"id":1,"result":{…}} or {"id":1,"error":"…"}),
// hands everything that may take long to tasks, so that several requests can be under way, and
// reaps what is left to PID 1. The verbs are listed in docs/testing.md. Single-threaded.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

class Server {
 public:
  /// `port`: an open virtio-serial port. SIGCHLD must be blocked; the server takes it by signalfd.
  explicit Server(int port);
  /// Sends {"event":"ready",…} and serves until the machine stops.
  [[noreturn]] void run();

 private:
  using Object = boost::json::object;
  struct Job {
    std::unique_ptr<Task> task;
    std::int64_t request = -1;  // the request to be answered by the task's next reply
  };

  void handle_line(const std::string& line);
  void handle(std::int64_t id, const Object& request);
  /// Answers at once; false where the verb is none of those.
  bool handle_query(std::int64_t id, const std::string& verb, const Object& request);
  /// Starts a task that will answer; false where the verb is none of those.
  bool handle_task(std::int64_t id, const std::string& verb, const Object& request);
  void start_task(std::int64_t id, const std::string& name, const Task::Body& body);
  void poll_task(const std::string& name);
  void spawn(std::int64_t id, const Object& request);
  void reap();

  void answer(std::int64_t id, Object result);
  void answer_error(std::int64_t id, const std::string& why);
  void send(const Object& message);

  int port_;
  int signals_;
  std::string buffer_;
  std::map<std::string, Job> jobs_;
  std::map<pid_t, int> ended_;  // spawned processes that ended: their wait status
  std::uint64_t next_name_ = 1;
};

}  // namespace fileballoon::guest
