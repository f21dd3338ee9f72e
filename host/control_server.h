// ControlServer: the daemon's control socket. JSON-RPC 2.0, one object a line, any number of calls
// a connection, answered in order; `events` with "follow" turns a connection into a stream of
// notifications. Lines are bounded, bad input gets a JSON-RPC error, and a client that does not
// read is dropped when kMaxBacklog bytes wait for it, or one line for Config::write_timeout.
// Control thread only.
#pragma once

#include <cstddef>
#include <memory>
#include <set>
#include <string>

#include "fileballoon/unique_fd.h"
#include "host/asio.h"
#include "host/daemon.h"

namespace fileballoon::host {

/// A connection, as the server sees it: something to close when the daemon ends.
class ControlClient {
 public:
  virtual ~ControlClient() = default;
  virtual void close() = 0;
};

class ControlServer {
 public:
  static constexpr std::size_t kMaxLine = 64 * 1024;
  static constexpr std::size_t kMaxBacklog = 1024 * 1024;

  /// Arguments outlive this and its connections.
  ControlServer(asio::io_context& control, const Config& config, Daemon& daemon, EventLog& events);
  ~ControlServer();

  /// Takes the socket for this daemon: a lock beside it says whether another one has it, so that a
  /// socket left over by a killed daemon is replaced and that of a living one is not. Throws
  /// std::runtime_error naming the socket and what is wrong.
  void lock();
  /// Binds and accepts from now on; lock() comes first. Throws std::runtime_error.
  void listen();
  /// Accepts no more, closes every connection and removes the socket.
  void stop();

 private:
  [[nodiscard]] asio::awaitable<void> accept_loop();

  asio::io_context& control_;
  const Config& config_;
  Daemon& daemon_;
  EventLog& events_;
  UniqueFd lock_;
  asio::local::stream_protocol::acceptor acceptor_;
  std::shared_ptr<std::set<ControlClient*>> clients_;
  bool bound_ = false;
};

}  // namespace fileballoon::host
