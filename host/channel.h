// Channel: one connected socket to a guest's agent, pumped through a GuestSession. Reading stops
// while the session takes no more input (back-pressure reaches the guest through the socket), and a
// peer that does not read is given up after a timeout. Lives for one connection; control thread
// only.
#pragma once

#include <memory>
#include <string>

#include "host/asio.h"
#include "host/guest_session.h"

namespace fileballoon::host {

class Channel : public std::enable_shared_from_this<Channel> {
 public:
  /// `session` must outlive run().
  Channel(LocalSocket socket, GuestSession& session, std::chrono::milliseconds write_timeout);

  /// Opens the session, pumps until the connection or the session ends, closes both; says why it
  /// ended. A session that failed still gets its ERROR out, within the write timeout. The socket is
  /// open until no report is in work: the guest's agent lets go of its pages when it is closed.
  [[nodiscard]] asio::awaitable<std::string> run();

  /// The session has output, or takes input again.
  void notify() { changed_.notify(); }
  /// Ends run() now.
  void stop(std::string reason);

 private:
  [[nodiscard]] asio::awaitable<void> read_loop();
  [[nodiscard]] asio::awaitable<void> write_loop();
  [[nodiscard]] asio::awaitable<void> wait_for_tokens(std::size_t bytes);
  void repeat_hello_later();

  LocalSocket socket_;
  GuestSession& session_;
  std::chrono::milliseconds write_timeout_;
  asio::steady_timer write_timer_;
  asio::steady_timer hello_timer_;
  asio::steady_timer rate_timer_;
  std::size_t tokens_;  // bytes that may be read now
  std::chrono::steady_clock::time_point tokens_at_;
  Signal changed_;
  bool stopped_ = false;
  bool writer_done_ = false;
  std::string reason_;
};

}  // namespace fileballoon::host
