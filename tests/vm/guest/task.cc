#include "tests/vm/guest/task.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>
#include <exception>
#include <system_error>

namespace fileballoon::guest {
namespace json = boost::json;
namespace {

void write_all(int fd, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // the other side is gone; its end is noticed elsewhere
    done += static_cast<std::size_t>(n);
  }
}

std::optional<json::object> take_line(std::string& buffer) {
  const auto end = buffer.find('\n');
  if (end == std::string::npos) return std::nullopt;
  json::object object = json::parse(buffer.substr(0, end)).as_object();
  buffer.erase(0, end + 1);
  return object;
}

}  // namespace

void TaskPort::send(const json::object& message) {
  write_all(fd_, json::serialize(message) + "\n");
}

void TaskPort::reply(const json::object& result) { send({{"result", result}}); }

void TaskPort::fail(const std::string& why) { send({{"error", why}}); }

std::optional<json::object> TaskPort::next_order() {
  while (true) {
    if (auto order = take_line(buffer_)) return order;
    char chunk[4096];
    const ssize_t n = read(fd_, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::nullopt;
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
}

Task::Task(const Body& body) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    throw std::system_error(errno, std::generic_category(), "socketpair");
  }
  pid_ = fork();
  if (pid_ < 0) {
    close(fds[0]);
    close(fds[1]);
    throw std::system_error(errno, std::generic_category(), "fork");
  }
  if (pid_ == 0) {
    close(fds[0]);
    TaskPort port(fds[1]);
    try {
      body(port);
    } catch (const std::exception& error) {
      port.fail(error.what());
    }
    _exit(0);
  }
  close(fds[1]);
  fd_ = fds[0];
}

Task::Task(Task&& other) noexcept
    : pid_(other.pid_), fd_(other.fd_), closed_(other.closed_), buffer_(std::move(other.buffer_)) {
  other.pid_ = -1;
  other.fd_ = -1;
}

Task::~Task() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (fd_ >= 0) close(fd_);
}

void Task::order(const json::object& order) { write_all(fd_, json::serialize(order) + "\n"); }

std::optional<json::object> Task::read_reply() {
  if (auto reply = take_line(buffer_)) return reply;
  char chunk[16384];
  const ssize_t n = recv(fd_, chunk, sizeof chunk, MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) closed_ = true;
  if (n > 0) buffer_.append(chunk, static_cast<std::size_t>(n));
  return take_line(buffer_);
}

std::string Task::end() {
  int status = 0;
  if (pid_ <= 0 || waitpid(pid_, &status, 0) != pid_) return "ended unseen";
  pid_ = -1;
  if (WIFSIGNALED(status)) return std::string("killed by ") + strsignal(WTERMSIG(status));
  return "exited with status " + std::to_string(WEXITSTATUS(status));
}

}  // namespace fileballoon::guest
