// QmpClient: QEMU's machine protocol, blocking, with a timeout on every step. It does the greeting,
// keeps events apart from replies, and runs human-monitor commands. The daemon asks it for the
// layout of guest RAM from a worker thread; tests drive their guests with it.
#pragma once

#include <string>
#include <string_view>

#include "host/json_line_client.h"

namespace fileballoon::host {

class QmpClient {
 public:
  using Timeout = JsonLineClient::Timeout;

  /// Connects to the monitor at `path` and negotiates capabilities. QEMU serves one client at a
  /// time and leaves a second without a greeting: the error says that this is likely.
  [[nodiscard]] static Result<QmpClient> connect(const std::string& path,
                                                 Timeout timeout = JsonLineClient::kDefaultTimeout);
  /// Greets over a client that is already connected.
  [[nodiscard]] static Result<QmpClient> greet(JsonLineClient client,
                                               Timeout timeout = JsonLineClient::kDefaultTimeout);

  /// Runs one command; the value of "return", or QEMU's refusal naming the command.
  [[nodiscard]] Result<boost::json::value> execute(
      std::string_view command, boost::json::object arguments = {},
      Timeout timeout = JsonLineClient::kDefaultTimeout);
  /// A command of the human monitor; its text.
  [[nodiscard]] Result<std::string> human(std::string_view command_line,
                                          Timeout timeout = JsonLineClient::kDefaultTimeout);
  /// Waits for the event `name` (also one that came during an earlier execute()); its object.
  [[nodiscard]] Result<boost::json::value> wait_event(std::string_view name, Timeout timeout);

 private:
  explicit QmpClient(JsonLineClient client) : client_(std::move(client)) {}
  /// Keeps an event for wait_event(), dropping the oldest beyond a bound.
  void keep_event(boost::json::value event);

  JsonLineClient client_;
  std::deque<boost::json::value> events_;
};

/// The member `key` of a reply, empty where there is none or it is no text.
[[nodiscard]] std::string reply_text(const boost::json::object& reply, std::string_view key);

}  // namespace fileballoon::host
