// JsonLineClient: a blocking client for sockets that speak JSON, one object a line: fileballoond's
// control socket (JSON-RPC 2.0) and QEMU's monitor (QMP). Every wait has a timeout and every line a
// limit, so a peer that hangs or floods costs its caller an error and no more. Used by
// fileballoonctl, by QmpClient and by tests; one thread at a time per client.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon::host {

/// The reply of a JSON-RPC server that refused a call.
struct RpcError {
  int code = 0;
  std::string message;
};

class JsonLineClient {
 public:
  using Timeout = std::chrono::milliseconds;
  static constexpr Timeout kDefaultTimeout{5000};
  /// `info mtree -f` of a machine with hundreds of devices is some hundred KiB.
  static constexpr std::size_t kMaxLine = std::size_t{16} << 20;

  /// Connects to the UNIX stream socket at `path`. The error names the path and what is wrong with
  /// it (missing, not a socket, nobody listening, no permission, busy).
  [[nodiscard]] static Result<JsonLineClient> connect(const std::string& path,
                                                      Timeout timeout = kDefaultTimeout);
  /// Takes over a connected stream socket; `name` stands for it in errors.
  [[nodiscard]] static JsonLineClient adopt(int fd, std::string name);

  JsonLineClient(JsonLineClient&& other) noexcept;
  JsonLineClient& operator=(JsonLineClient&& other) noexcept;
  JsonLineClient(const JsonLineClient&) = delete;
  JsonLineClient& operator=(const JsonLineClient&) = delete;
  ~JsonLineClient();

  /// Sends one object and a newline.
  [[nodiscard]] Result<void> send(const boost::json::value& message,
                                  Timeout timeout = kDefaultTimeout);
  /// The next line, parsed. Blank lines are skipped. An error where nothing came in time, the peer
  /// closed, or the line is not JSON. A negative timeout waits for ever; one of 0 takes what has
  /// arrived.
  [[nodiscard]] Result<boost::json::value> receive(Timeout timeout = kDefaultTimeout);

  /// One JSON-RPC 2.0 call: its result, or the server's refusal (its message, and rpc_error()).
  /// Notifications that arrive in between are kept for next_notification().
  [[nodiscard]] Result<boost::json::value> call(std::string_view method,
                                                boost::json::object params = {},
                                                Timeout timeout = std::chrono::seconds(60));
  /// Set by the last call() that the server refused; code 0 where it was not the server's refusal.
  [[nodiscard]] const RpcError& rpc_error() const { return rpc_error_; }

  /// The next notification (an object with "method" and no "id"): one kept by call(), or read now.
  [[nodiscard]] Result<boost::json::value> next_notification(Timeout timeout = kDefaultTimeout);

  [[nodiscard]] int fd() const { return fd_; }
  /// True where the peer has closed the connection (seen by an earlier receive()).
  [[nodiscard]] bool is_closed() const { return closed_; }

 private:
  JsonLineClient(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}
  void close();
  [[nodiscard]] Error no_answer() const;

  int fd_ = -1;
  std::string name_;
  std::string buffer_;
  std::size_t scanned_ = 0;  // of buffer_, known to hold no newline
  std::deque<boost::json::value> notifications_;
  RpcError rpc_error_;
  std::int64_t last_id_ = 0;
  bool closed_ = false;
};

}  // namespace fileballoon::host
