#include "host/qmp_client.h"

#include <algorithm>

namespace fileballoon::host {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxEvents = 256;

QmpClient::Timeout left_until(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<QmpClient::Timeout>(deadline - Clock::now());
  return std::max(left, QmpClient::Timeout(0));
}

}  // namespace

Result<QmpClient> QmpClient::connect(const std::string& path, Timeout timeout) {
  Result<JsonLineClient> client = JsonLineClient::connect(path, timeout);
  if (!client) {
    return Error{"QMP socket " + client.error().message};
  }
  return greet(std::move(*client), timeout);
}

Result<QmpClient> QmpClient::greet(JsonLineClient client, Timeout timeout) {
  const Result<boost::json::value> greeting = client.receive(timeout);
  if (!greeting) {
    return Error{"no QMP greeting from " + greeting.error().message +
                 " (QEMU serves one client at a time: is another one connected?)"};
  }
  if (!greeting->is_object() || !greeting->get_object().contains("QMP")) {
    return Error{
        "the socket given for QMP does not speak QMP (use -qmp unix:PATH,server=on,"
        "wait=off)"};
  }
  QmpClient qmp(std::move(client));
  if (const auto done = qmp.execute("qmp_capabilities", {}, timeout); !done) {
    return done.error();
  }
  return qmp;
}

void QmpClient::keep_event(boost::json::value event) {
  if (events_.size() == kMaxEvents) {
    events_.pop_front();
  }
  events_.push_back(std::move(event));
}

Result<boost::json::value> QmpClient::execute(std::string_view command,
                                              boost::json::object arguments, Timeout timeout) {
  boost::json::object request{{"execute", boost::json::string(command)}};
  if (!arguments.empty()) {
    request["arguments"] = std::move(arguments);
  }
  if (const auto sent = client_.send(request, timeout); !sent) {
    return sent.error();
  }
  const auto deadline = Clock::now() + timeout;
  // Asked after every message: what is in the buffer is received whatever the time, so a monitor
  // that never stops to tell of events would hold the caller for ever.
  do {
    Result<boost::json::value> received = client_.receive(left_until(deadline));
    if (!received) {
      return Error{"QMP " + std::string(command) + ": " + received.error().message};
    }
    boost::json::object* object = received->if_object();
    if (object == nullptr) {
      return Error{"QMP " + std::string(command) + ": the reply is no object"};
    }
    if (object->contains("event")) {
      keep_event(std::move(*received));
      continue;
    }
    if (auto* value = object->if_contains("return"); value != nullptr) {
      return std::move(*value);
    }
    std::string why = "refused";
    if (const auto* error = object->if_contains("error"); error != nullptr && error->is_object()) {
      if (const auto* text = error->get_object().if_contains("desc");
          text != nullptr && text->is_string()) {
        why = std::string(text->get_string());
      }
    }
    return Error{"QMP " + std::string(command) + ": " + why};
  } while (Clock::now() < deadline);
  return Error{"QMP " + std::string(command) + ": only events, no answer in time"};
}

Result<std::string> QmpClient::human(std::string_view command_line, Timeout timeout) {
  const Result<boost::json::value> reply = execute(
      "human-monitor-command", {{"command-line", boost::json::string(command_line)}}, timeout);
  if (!reply) {
    return reply.error();
  }
  if (!reply->is_string()) {
    return Error{"QMP human-monitor-command: the reply is no text"};
  }
  // In place: an Error could be made of a string, too, so the conversion would be ambiguous.
  return {boost::system::in_place_value, reply->get_string().data(), reply->get_string().size()};
}

Result<boost::json::value> QmpClient::wait_event(std::string_view name, Timeout timeout) {
  const auto deadline = Clock::now() + timeout;
  const auto is_wanted = [&](const boost::json::value& value) {
    const auto* event = value.is_object() ? value.get_object().if_contains("event") : nullptr;
    return event != nullptr && event->is_string() && event->get_string() == name;
  };
  while (!events_.empty()) {
    boost::json::value event = std::move(events_.front());
    events_.pop_front();
    if (is_wanted(event)) {
      return event;
    }
  }
  const std::string waiting = "waiting for the QMP event " + std::string(name) + ": ";
  do {
    Result<boost::json::value> received = client_.receive(left_until(deadline));
    if (!received) {
      return Error{waiting + received.error().message};
    }
    if (is_wanted(*received)) {
      return received;
    }
  } while (Clock::now() < deadline);
  return Error{waiting + "only others came in time"};
}

std::string reply_text(const boost::json::object& reply, std::string_view key) {
  const auto* value = reply.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

}  // namespace fileballoon::host
