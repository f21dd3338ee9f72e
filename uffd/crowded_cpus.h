// CrowdedCpus: whether it pays to look for something again and again and give way in between
// (sched_yield(2)). Giving way takes a microsecond while a CPU is free, and the rest of somebody's
// time slice, 3 ms and more, while none is; then sleeping is better, since who is woken runs at
// once. One thread.
#pragma once

#include <chrono>

namespace fileballoon {

class CrowdedCpus {
 public:
  using Clock = std::chrono::steady_clock;

  /// `limit`: what the time between two looks never takes on a machine with a free CPU.
  explicit CrowdedCpus(Clock::duration limit) : limit_(limit) {}

  /// The time since the last look, which was spent giving way.
  void gave_way(Clock::duration spent, Clock::time_point now) {
    if (spent > limit_) {
      until_ = now + kBelieved;
    }
  }
  [[nodiscard]] bool at(Clock::time_point now) const { return now < until_; }

 private:
  static constexpr std::chrono::seconds kBelieved{1};

  Clock::duration limit_;
  Clock::time_point until_{};
};

}  // namespace fileballoon
