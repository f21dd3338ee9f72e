// BalloonActor: the actor that has a guest's agent grow or shrink its balloon, by the limits that
// the agent is told. The floor, the locked part of the balloon, is the operator's and never above
// what the policy orders. Control thread only.
#pragma once

#include <functional>
#include <optional>

#include "fileballoon/limits.h"
#include "host/actor.h"

namespace fileballoon::host {

class BalloonActor final : public Actor {
 public:
  struct Port {
    /// Resident balloon pages, as the agent last said; nothing while no agent is connected.
    std::function<std::optional<Bytes>()> resident;
    std::function<void(const Limits&)> set_limits;
  };

  /// `limits`: what the agent was told last, by this daemon or the one before.
  BalloonActor(Port port, Limits limits)
      : port_(std::move(port)), limits_(limits), floor_(limits.floor) {}

  void set_floor(Bytes floor) { floor_ = floor; }
  [[nodiscard]] Bytes floor() const { return floor_; }
  [[nodiscard]] const Limits& limits() const { return limits_; }

  [[nodiscard]] bool is_ready() const override { return port_.resident().has_value(); }
  /// Where nobody knows it, what the agent may hold: to believe in nothing would have a balloon
  /// emptied after each restart.
  [[nodiscard]] Bytes withheld() const override {
    return port_.resident().value_or(limits_.target);
  }
  void carry_out(const PolicyOrder& order, Bytes /*footprint*/) override {
    const Bytes target = order.balloon_target.page_floor();
    const Limits limits{target, std::min(floor_, target)};
    if (limits != limits_) {
      limits_ = limits;
      port_.set_limits(limits);
    }
  }

 private:
  Port port_;
  Limits limits_;
  Bytes floor_;
};

}  // namespace fileballoon::host
