#include "bench/vm_bench/recorder.h"

#include <algorithm>

namespace fileballoon::bench {

void Recorder::take_sample(double working_set_mib, Clock::time_point step_began) {
  mode_.steer();
  const auto now = Clock::now();
  const auto seconds = [](Clock::duration span) {
    return std::chrono::duration<double>(span).count();
  };
  series_.push_back({seconds(now - start_), working_set_mib, vm_.footprint().now().as_mib(),
                     seconds(now - step_began), step_});
  next_ = std::max(next_ + kPeriod, now);
}

}  // namespace fileballoon::bench
