#include "host/event_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace fileballoon::host {
namespace {

std::string_view name_of(Severity severity) {
  switch (severity) {
    case Severity::info:
      return "info";
    case Severity::warning:
      return "warning";
    case Severity::error:
      break;
  }
  return "error";
}

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch());
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(now)), ms.count() % 1000);
}

}  // namespace

void EventLog::publish(Severity severity, std::string_view kind, std::string_view vm,
                       std::string text, boost::json::object fields) {
  const auto level = severity == Severity::info      ? spdlog::level::info
                     : severity == Severity::warning ? spdlog::level::warn
                                                     : spdlog::level::err;
  if (vm.empty()) {
    spdlog::log(level, "{}: {}", kind, text);
  } else {
    spdlog::log(level, "{}: {}: {}", vm, kind, text);
  }
  boost::json::object event{{"seq", ++sequence_},
                            {"time", utc_now()},
                            {"severity", name_of(severity)},
                            {"event", kind},
                            {"text", text}};
  if (!vm.empty()) {
    event["vm"] = vm;
  }
  for (auto& [key, value] : fields) {
    event[key] = value;
  }
  if (recent_.size() == kKept) {
    recent_.pop_front();
  }
  recent_.push_back(event);
  // A subscriber may unsubscribe while it is called (a slow one is dropped).
  const auto subscribers = subscribers_;
  for (const auto& [id, subscriber] : subscribers) {
    if (subscribers_.contains(id)) {
      subscriber(event);
    }
  }
}

void EventLog::publish_from_guest(Severity severity, std::string_view kind, std::string_view vm,
                                  std::string text, Clock::time_point now,
                                  boost::json::object fields) {
  auto found = rates_.find(vm);
  if (found == rates_.end()) {
    found = rates_.emplace(std::string(vm), Rate{kGuestBurst, now, 0}).first;
  }
  Rate& rate = found->second;
  const double seconds = std::chrono::duration<double>(now - rate.last).count();
  rate.tokens = std::min(kGuestBurst, rate.tokens + std::max(seconds, 0.0));
  rate.last = now;
  if (rate.tokens < 1) {
    ++rate.suppressed;
    return;
  }
  rate.tokens -= 1;
  if (const auto left_out = std::exchange(rate.suppressed, 0); left_out > 0) {
    text += fmt::format(" ({} more events of this VM were left out before)", left_out);
    fields["left_out"] = left_out;
  }
  publish(severity, kind, vm, std::move(text), std::move(fields));
}

void EventLog::forget(std::string_view vm) {
  if (const auto found = rates_.find(vm); found != rates_.end()) {
    rates_.erase(found);
  }
}

EventLog::SubscriberId EventLog::subscribe(Subscriber subscriber) {
  subscribers_.emplace(++last_subscriber_, std::move(subscriber));
  return last_subscriber_;
}

void EventLog::unsubscribe(SubscriberId id) { subscribers_.erase(id); }

}  // namespace fileballoon::host
