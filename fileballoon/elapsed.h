// Time between two looks at a clock that may jump: a suspended host, a stopped daemon, a test.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace fileballoon {

/// From `last` to `now`, at least nothing (a clock that went backwards stands still) and at most
/// `longest`. Exact for any two times: their difference may not fit a duration.
[[nodiscard]] inline std::chrono::nanoseconds elapsed(std::chrono::steady_clock::time_point last,
                                                      std::chrono::steady_clock::time_point now,
                                                      std::chrono::nanoseconds longest) {
  if (now <= last) {
    return std::chrono::nanoseconds::zero();
  }
  const auto ticks = [](std::chrono::steady_clock::time_point t) {
    return static_cast<std::uint64_t>(t.time_since_epoch().count());
  };
  const std::uint64_t passed = ticks(now) - ticks(last);  // modulo 2^64, so never wrong here
  return std::chrono::nanoseconds(
      static_cast<std::int64_t>(std::min(passed, static_cast<std::uint64_t>(longest.count()))));
}

}  // namespace fileballoon
