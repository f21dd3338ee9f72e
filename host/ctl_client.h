// What every verb of fileballoonctl needs: a connection whose errors become exit statuses, and the
// choice between tables for people and JSON.
#pragma once

#include <fmt/format.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include "host/json_line_client.h"

namespace fileballoon::host {

namespace json = boost::json;

inline constexpr int kExitRefused = 1;
inline constexpr int kExitNoDaemon = 3;

/// An exit status with what to say.
struct Failure {
  int status;
  std::string message;
};

/// A connection to the daemon.
class Control {
 public:
  explicit Control(const std::string& socket) : client_(connect(socket)) {}

  json::value call(std::string_view method, json::object params,
                   JsonLineClient::Timeout timeout = std::chrono::seconds(60)) {
    Result<json::value> result = client_.call(method, std::move(params), timeout);
    if (!result) {
      throw Failure{client_.rpc_error().code != 0 ? kExitRefused : kExitNoDaemon,
                    result.error().message};
    }
    return std::move(*result);
  }
  /// The next event; waits for ever.
  json::object next_event() {
    Result<json::value> notification = client_.next_notification(JsonLineClient::Timeout(-1));
    if (!notification) {
      throw Failure{kExitNoDaemon, notification.error().message};
    }
    const auto* params = notification->get_object().if_contains("params");
    return params != nullptr && params->is_object() ? params->get_object() : json::object();
  }

 private:
  static JsonLineClient connect(const std::string& socket) {
    Result<JsonLineClient> client = JsonLineClient::connect(socket);
    if (!client) {
      const bool forbidden = ::access(socket.c_str(), W_OK) != 0 && errno == EACCES;
      throw Failure{kExitNoDaemon,
                    fmt::format("cannot reach fileballoond at its control socket {}{}",
                                client.error().message,
                                forbidden ? ""
                                          : "; is it running (systemctl start fileballoond), and "
                                            "is --socket right?")};
    }
    return std::move(*client);
  }

  JsonLineClient client_;
};

inline void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

inline void print_json(const json::value& value) { print(json::serialize(value) + "\n"); }

/// Prints a value as JSON or in `format`'s words.
template <class Format>
void show(bool as_json, const json::value& value, Format&& format) {
  if (as_json) {
    print_json(value);
  } else {
    print(format(value));
  }
}

}  // namespace fileballoon::host
