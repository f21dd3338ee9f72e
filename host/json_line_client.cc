#include "host/json_line_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace fileballoon::host {
namespace {

using Clock = std::chrono::steady_clock;

/// A point in time, or never for a negative timeout.
class Deadline {
 public:
  explicit Deadline(JsonLineClient::Timeout timeout)
      : never_(timeout.count() < 0), at_(Clock::now() + (never_ ? timeout * 0 : timeout)) {}
  /// For poll(2): milliseconds left, rounded up; -1 for never.
  [[nodiscard]] int left() const {
    if (never_) {
      return -1;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return left > 0 ? static_cast<int>(left) : 0;
  }

 private:
  bool never_;
  Clock::time_point at_;
};

/// Waits until `fd` is ready for `events`; false where the deadline passed first.
bool wait_for(int fd, short events, const Deadline& deadline) {
  while (true) {
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, deadline.left());
    if (ready > 0) {
      return true;
    }
    if (ready == 0) {
      return false;
    }
    if (errno != EINTR) {
      return true;  // the read or write that follows reports the error
    }
  }
}

std::string connect_failure(const std::string& path, int error) {
  struct stat info {};
  switch (error) {
    case ENOENT:
      return path + ": no such socket";
    case EACCES:
    case EPERM:
      return path + ": no permission to connect (run as root or as a member of its group)";
    case ECONNREFUSED:
      if (::stat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode)) {
        return path + ": is not a socket";
      }
      return path + ": nobody listens on this socket";
    case EAGAIN:
      return path + ": the queue of connections is full (another client holds the socket)";
    default:
      return path + ": cannot connect: " + std::strerror(error);
  }
}

}  // namespace

Result<JsonLineClient> JsonLineClient::connect(const std::string& path, Timeout timeout) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error{"socket path '" + path + "' must have 1 to " +
                 std::to_string(sizeof address.sun_path - 1) + " characters"};
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    return Error{std::string("cannot make a socket: ") + std::strerror(errno)};
  }
  JsonLineClient client(fd, path);
  const Deadline deadline(timeout);
  // A UNIX socket connects at once or, with a full backlog, says EAGAIN and cannot be polled for.
  while (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (error == EINTR) {
      continue;
    }
    if (error != EAGAIN || deadline.left() == 0) {
      return Error{connect_failure(path, error)};
    }
    ::poll(nullptr, 0, 10);
  }
  return client;
}

JsonLineClient JsonLineClient::adopt(int fd, std::string name) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  return {fd, std::move(name)};
}

JsonLineClient::JsonLineClient(JsonLineClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      name_(std::move(other.name_)),
      buffer_(std::move(other.buffer_)),
      scanned_(other.scanned_),
      notifications_(std::move(other.notifications_)),
      rpc_error_(std::move(other.rpc_error_)),
      last_id_(other.last_id_),
      closed_(other.closed_) {}

JsonLineClient& JsonLineClient::operator=(JsonLineClient&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    name_ = std::move(other.name_);
    buffer_ = std::move(other.buffer_);
    scanned_ = other.scanned_;
    notifications_ = std::move(other.notifications_);
    rpc_error_ = std::move(other.rpc_error_);
    last_id_ = other.last_id_;
    closed_ = other.closed_;
  }
  return *this;
}

JsonLineClient::~JsonLineClient() { close(); }

void JsonLineClient::close() {
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
  }
}

Error JsonLineClient::no_answer() const { return Error{name_ + ": no answer in time"}; }

Result<void> JsonLineClient::send(const boost::json::value& message, Timeout timeout) {
  const std::string line = boost::json::serialize(message) + "\n";
  const Deadline deadline(timeout);
  std::size_t sent = 0;
  while (sent < line.size()) {
    const ssize_t n = ::send(fd_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      if (!wait_for(fd_, POLLOUT, deadline)) {
        return Error{name_ + ": the other side does not read"};
      }
    } else if (errno != EINTR) {
      closed_ = closed_ || errno == EPIPE || errno == ECONNRESET;
      return Error{name_ + ": " + std::strerror(errno)};
    }
  }
  return {};
}

Result<boost::json::value> JsonLineClient::receive(Timeout timeout) {
  const Deadline deadline(timeout);
  while (true) {
    const std::size_t newline = buffer_.find('\n', scanned_);
    if (newline != std::string::npos) {
      const std::string line = buffer_.substr(0, newline);
      buffer_.erase(0, newline + 1);
      scanned_ = 0;
      if (line.find_first_not_of(" \t\r") == std::string::npos) {
        if (deadline.left() == 0) {
          return no_answer();
        }
        continue;
      }
      boost::system::error_code error;
      boost::json::value value = boost::json::parse(line, error);
      if (error) {
        return Error{name_ + ": sent a line that is not JSON: " + line.substr(0, 80)};
      }
      return value;
    }
    scanned_ = buffer_.size();
    if (buffer_.size() > kMaxLine) {
      return Error{name_ + ": sent a line longer than " + std::to_string(kMaxLine) + " bytes"};
    }
    std::array<char, 16384> chunk;
    const ssize_t n = ::recv(fd_, chunk.data(), chunk.size(), 0);
    if (n > 0) {
      buffer_.append(chunk.data(), static_cast<std::size_t>(n));
    } else if (n == 0 || errno == ECONNRESET) {
      closed_ = true;
      return Error{name_ + ": closed the connection"};
    } else if (errno == EAGAIN) {
      if (!wait_for(fd_, POLLIN, deadline)) {
        return no_answer();
      }
    } else if (errno != EINTR) {
      return Error{name_ + ": " + std::strerror(errno)};
    }
  }
}

Result<boost::json::value> JsonLineClient::call(std::string_view method, boost::json::object params,
                                                Timeout timeout) {
  rpc_error_ = {};
  const std::int64_t id = ++last_id_;
  const Deadline deadline(timeout);
  if (const auto sent = send({{"jsonrpc", "2.0"},
                              {"id", id},
                              {"method", boost::json::string(method)},
                              {"params", std::move(params)}});
      !sent) {
    return sent.error();
  }
  do {
    Result<boost::json::value> received = receive(Timeout(deadline.left()));
    if (!received) {
      return received;
    }
    const boost::json::object* reply = received->if_object();
    if (reply == nullptr) {
      return Error{name_ + ": sent something that is no JSON-RPC reply"};
    }
    const boost::json::value* reply_id = reply->if_contains("id");
    if (reply_id == nullptr) {
      notifications_.push_back(std::move(*received));
      continue;
    }
    if (const auto* error = reply->if_contains("error");
        error != nullptr && error->is_object() && (*reply_id == id || reply_id->is_null())) {
      const auto* code = error->get_object().if_contains("code");
      const auto* text = error->get_object().if_contains("message");
      rpc_error_.code =
          code != nullptr && code->is_int64() ? static_cast<int>(code->get_int64()) : -1;
      rpc_error_.message =
          text != nullptr && text->is_string() ? std::string(text->get_string()) : "unknown error";
      return Error{rpc_error_.message};
    }
    if (*reply_id != id) {
      continue;  // the late answer to an earlier call that timed out
    }
    if (const auto* result = reply->if_contains("result"); result != nullptr) {
      return *result;
    }
    return Error{name_ + ": sent a reply with neither result nor error"};
  } while (deadline.left() != 0);
  return no_answer();
}

Result<boost::json::value> JsonLineClient::next_notification(Timeout timeout) {
  if (!notifications_.empty()) {
    boost::json::value value = std::move(notifications_.front());
    notifications_.pop_front();
    return value;
  }
  const Deadline deadline(timeout);
  do {
    Result<boost::json::value> received = receive(Timeout(deadline.left()));
    if (!received) {
      return received;
    }
    const boost::json::object* object = received->if_object();
    if (object != nullptr && object->contains("method") && !object->contains("id")) {
      return received;
    }
  } while (deadline.left() != 0);
  return no_answer();
}

}  // namespace fileballoon::host
