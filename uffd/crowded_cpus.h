// CrowdedCpus: whether it pays to look for something again and again and give way in between
// (sched_yield(2)). Giving way takes a microsecond while a CPU is free, and the rest of somebody's
// time slice, 3 ms and more, while none is; then sleeping is better, since who is woken runs at
// once. A single long wait is no proof (a kernel thread, or the hypervisor took the CPU for a
// moment): it is believed for some milliseconds, and twice as long each time it is found true
// again at once. One thread.
#pragma once

#include <algorithm>
#include <chrono>

namespace fileballoon {

class CrowdedCpus {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::milliseconds kShortestBelief{4};
  static constexpr std::chrono::milliseconds kLongestBelief{1000};

  /// `limit`: what the time between two looks never takes on a machine with a free CPU.
  explicit CrowdedCpus(Clock::duration limit) : limit_(limit) {}

  /// The time since the last look, which was spent giving way.
  void gave_way(Clock::duration spent, Clock::time_point now) {
    if (spent <= limit_) {
      return;
    }
    // Looking was good for as long as not looking had been: what was believed is out of date.
    const bool is_again = now < until_ + std::max<Clock::duration>(belief_, spent * 2);
    belief_ = is_again ? std::min<Clock::duration>(belief_ * 2, kLongestBelief) : kShortestBelief;
    until_ = now + belief_;
  }
  [[nodiscard]] bool at(Clock::time_point now) const { return now < until_; }

 private:
  Clock::duration limit_;
  Clock::duration belief_ = kShortestBelief / 2;
  Clock::time_point until_{};
};

}  // namespace fileballoon
