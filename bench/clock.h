// The clock of benchmarks that time by hand.
#pragma once

#include <chrono>

namespace fileballoon::bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace fileballoon::bench
