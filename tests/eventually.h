// eventually(): the one way in which tests and the VM kit wait for something that another process
// or thread does.
#pragma once

#include <chrono>
#include <thread>

namespace fileballoon {

/// Asks every `pause` until `condition` holds; whether it did before `patience` was over. Only a
/// failure takes that long, so it may be generous. Asked once more after the last moment: a test
/// that did not get to run in between has seen nothing yet.
template <class Condition>
[[nodiscard]] bool eventually(Condition&& condition,
                              std::chrono::milliseconds patience = std::chrono::seconds(20),
                              std::chrono::milliseconds pause = std::chrono::milliseconds(10)) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (true) {
    const bool last = std::chrono::steady_clock::now() >= end;
    if (condition()) {
      return true;
    }
    if (last) {
      return false;
    }
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace fileballoon
