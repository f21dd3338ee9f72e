// VmDeflation: what one guest takes back from its balloon, as it happens. Where a fault keeper
// answers the VM's refaults, the keeper tells; otherwise the guest's agent does (DEFLATED, STATS).
// Publishes the events "deflating", "deflating-fast" and "deflated", and holds the meter that stats
// and the arbiter read. Keeps itself alive until stop(); control thread only.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fileballoon/deflation_meter.h"
#include "host/asio.h"
#include "host/event_log.h"
#include "uffd/faultd/deflation_watch.h"

namespace fileballoon::host {

class VmDeflation final : public std::enable_shared_from_this<VmDeflation> {
 public:
  /// `keeper`: the socket of the VM's fault keeper; empty where the kernel answers refaults.
  VmDeflation(asio::io_context& control, EventLog& events, std::string vm, Bytes ram,
              std::string keeper);

  /// `on_fast` is called whenever the guest takes memory back fast, again and again while it does.
  void start(std::function<void()> on_fast = {});
  void stop();

  /// The guest's balloon holds `pages` now, and was asked for `target` (its own word; ignored where
  /// a keeper tells). What it gives up because the target fell is no deflation of its own will.
  void guest_holds(std::uint64_t pages, std::uint64_t target);
  /// A new session: what its balloon held before says nothing.
  void forget_guest() { guest_pages_.reset(); }

  [[nodiscard]] const DeflationMeter& meter() const { return meter_; }
  /// For `stats`: total_bytes, bytes_per_s, fast, and who says so.
  [[nodiscard]] boost::json::object report() const;

 private:
  using Clock = DeflationMeter::Clock;

  [[nodiscard]] asio::awaitable<void> follow_keeper();
  [[nodiscard]] asio::awaitable<void> pause(Clock::duration time);
  void add(Bytes amount);
  void publish(DeflationMeter::Change change);
  void look_later();

  EventLog& events_;
  std::string vm_;
  std::string keeper_;
  std::function<void()> on_fast_;
  DeflationMeter meter_;
  std::optional<std::uint64_t> guest_pages_;
  asio::steady_timer pause_;
  asio::steady_timer look_;
  asio::posix::stream_descriptor readable_;
  asio::io_context& control_;
  bool stopped_ = false;
};

}  // namespace fileballoon::host
