// Actor: one mechanism that can bring a VM to its target. What is registered in actor_registry.h is
// known by name; the daemon asks each for what it withholds from the guest and hands each its part
// of the policy's order. Control thread only; nothing here blocks.
#pragma once

#include "fileballoon/policy.h"

namespace fileballoon::host {

class Actor {
 public:
  Actor() = default;
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;
  virtual ~Actor() = default;

  /// Whether it can do something for the VM now.
  [[nodiscard]] virtual bool is_ready() const = 0;
  /// Memory that it keeps from the guest now: resident balloon pages, or paged-out content.
  [[nodiscard]] virtual Bytes withheld() const = 0;
  /// Carries out its part of `order`, which was made for this `footprint`.
  virtual void carry_out(const PolicyOrder& order, Bytes footprint) = 0;
};

}  // namespace fileballoon::host
