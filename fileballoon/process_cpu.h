// CPU time of another process.
#pragma once

#include <sys/types.h>
#include <time.h>

namespace fileballoon {

/// Of all its threads, since it began, seconds (clock_getcpuclockid(3)); 0 when it is gone.
[[nodiscard]] inline double cpu_seconds_of(pid_t pid) {
  clockid_t clock{};
  timespec used{};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &used) != 0) {
    return 0;
  }
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

}  // namespace fileballoon
