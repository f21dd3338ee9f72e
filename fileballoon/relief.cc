#include "fileballoon/relief.h"

#include "fileballoon/elapsed.h"

namespace fileballoon {

Relief::Step Relief::step(bool is_pressed, Clock::time_point now) {
  const Duration passed = stepped_ ? elapsed(last_, now, kLongestStep) : Duration{};
  last_ = now;
  stepped_ = true;
  if (!is_pressed) {
    pressed_ = {};
    next_epoch_ = kEpochAfter;
    next_purge_ = kPurgeAfter;
    return Step::none;
  }
  pressed_ += passed;
  if (pressed_ >= next_purge_) {
    next_purge_ = pressed_ + kAgain;
    return Step::purge;
  }
  if (pressed_ >= next_epoch_) {
    next_epoch_ = pressed_ + kAgain;
    return Step::advance_epoch;
  }
  return Step::none;
}

}  // namespace fileballoon
