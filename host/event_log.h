// EventLog: what happened, for operators and scripts. Keeps the last events, gives each a number
// and a time, writes it to the log, and hands it to subscribers. Events that a guest can cause are
// rate limited per VM, so a hostile guest cannot fill the host's log. Used on the control thread
// only.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace fileballoon::host {

enum class Severity { info, warning, error };

class EventLog {
 public:
  using Clock = std::chrono::steady_clock;
  /// Called with each new event, the JSON object that `events` shows.
  using Subscriber = std::function<void(const boost::json::object&)>;
  using SubscriberId = std::uint64_t;

  static constexpr std::size_t kKept = 256;

  /// `vm` may be empty. `kind` is one word ("vm-gone"); `text` a sentence for a person.
  void publish(Severity severity, std::string_view kind, std::string_view vm, std::string text,
               boost::json::object fields = {});
  /// The same for what a guest can cause at will: at most kGuestBurst at once and one a second
  /// after that; what was left out is counted in the next one that passes.
  void publish_from_guest(Severity severity, std::string_view kind, std::string_view vm,
                          std::string text, Clock::time_point now = Clock::now(),
                          boost::json::object fields = {});
  static constexpr double kGuestBurst = 10;
  /// Forgets the rate of a VM that is no more.
  void forget(std::string_view vm);

  [[nodiscard]] const std::deque<boost::json::object>& recent() const { return recent_; }
  [[nodiscard]] SubscriberId subscribe(Subscriber subscriber);
  void unsubscribe(SubscriberId id);

 private:
  struct Rate {
    double tokens = kGuestBurst;
    Clock::time_point last{};
    std::uint64_t suppressed = 0;
  };

  std::uint64_t sequence_ = 0;
  std::deque<boost::json::object> recent_;
  std::map<SubscriberId, Subscriber> subscribers_;
  SubscriberId last_subscriber_ = 0;
  std::map<std::string, Rate, std::less<>> rates_;
};

}  // namespace fileballoon::host
