// Relief: what a guest is asked for before its frames are taken by force. A VM that stays above its
// target under pressure is first told to let go of cold page cache (its epoch moves), then to give
// up page cache at once (a purge), and only then may be paged out. Pure; one per VM; time enters as
// a value, and no jump of a clock makes a step come early.
#pragma once

#include <chrono>

#include "fileballoon/bytes.h"

namespace fileballoon {

class Relief {
 public:
  using Clock = std::chrono::steady_clock;
  using Duration = std::chrono::nanoseconds;

  enum class Step { none, advance_epoch, purge };

  /// How long a VM may be above its target before each step. The balloon alone comes first: a guest
  /// with free memory gives hundreds of MiB in this time.
  static constexpr std::chrono::seconds kEpochAfter{2};
  static constexpr std::chrono::seconds kPurgeAfter{5};
  /// A purge is asked for again after this; an epoch with each purge's pause in between.
  static constexpr std::chrono::seconds kAgain{30};
  /// What a purge gives is seen after this; then force is allowed.
  static constexpr std::chrono::seconds kPurgeTakes{2};
  /// No more than this counts of one step, however far the clock jumped.
  static constexpr std::chrono::seconds kLongestStep{2};

  /// `is_pressed`: the VM is above its target and its memory is wanted elsewhere.
  [[nodiscard]] Step step(bool is_pressed, Clock::time_point now);
  /// Everything else was asked for.
  [[nodiscard]] bool may_force() const { return pressed_ >= kPurgeAfter + kPurgeTakes; }

 private:
  Clock::time_point last_{};
  bool stepped_ = false;
  Duration pressed_{};  // for how long
  Duration next_epoch_{kEpochAfter};
  Duration next_purge_{kPurgeAfter};
};

}  // namespace fileballoon
