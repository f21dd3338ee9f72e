// SpinLength: for how long a reader without work looks for some before it sleeps, learnt as the
// kernel's halt polling learns it (Documentation/virt/kvm/halt-polling.rst): a wake-up soon after
// going to sleep says that a longer spin would have caught it; a long sleep says that spinning was
// for nothing. One thread.
#pragma once

#include <algorithm>
#include <chrono>

namespace fileballoon {

class SpinLength {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::microseconds kShortest{10};

  /// Begins with `longest`; zero: there is nothing to learn.
  explicit SpinLength(std::chrono::microseconds longest) : longest_(longest), length_(longest) {}

  [[nodiscard]] std::chrono::microseconds length() const { return length_; }

  /// It slept, and another reader, if any, ended its last answer at `answered`. The time until then
  /// is not counted as sleep: an answer with a disk takes longer than any spin, and readers look on
  /// while one of them answers. What counts is how soon after it there was work again.
  void slept(Clock::time_point from, Clock::time_point to, Clock::time_point answered) {
    if (to - std::max(from, answered) < longest_) {
      length_ = std::min(longest_, std::max(length_ * 2, kShortest));
    } else {
      length_ /= 2;
    }
  }

 private:
  std::chrono::microseconds longest_;
  std::chrono::microseconds length_;
};

}  // namespace fileballoon
