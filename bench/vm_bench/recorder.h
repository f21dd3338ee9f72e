// Recorder: samples a guest's footprint twice a second while a scenario goes on, and lets the mode
// steer in between. One thread at a time.
#pragma once

#include <chrono>
#include <thread>

#include "bench/vm_bench/mode.h"
#include "bench/vm_bench/series.h"

namespace fileballoon::bench {

class Recorder {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPeriod{500};

  Recorder(vmkit::Vm& vm, Mode& mode) : vm_(vm), mode_(mode) {}

  /// One step: records until `more()` says no. The samples lie kPeriod apart whatever the steps do:
  /// one taken at the very beginning of each step would count the one moment at which nothing can
  /// have followed yet.
  template <class More>
  void record(double working_set_mib, More more) {
    const auto begin = Clock::now();
    while (more()) {
      if (Clock::now() < next_) {
        // In small pieces: the end of a step must be seen when it comes.
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      } else {
        take_sample(working_set_mib, begin);
      }
    }
    ++step_;
  }
  void record_for(double working_set_mib, Clock::duration length) {
    const auto end = Clock::now() + length;
    record(working_set_mib, [&] { return Clock::now() < end; });
  }
  /// Recorded so far; the working set may be set right afterwards.
  [[nodiscard]] Series& series() { return series_; }

 private:
  void take_sample(double working_set_mib, Clock::time_point step_began);

  vmkit::Vm& vm_;
  Mode& mode_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_;
  std::size_t step_ = 0;
  Series series_;
};

}  // namespace fileballoon::bench
