// keep_running(): a coroutine of the control thread that is to run until it is told to end. One
// that fails with an exception is told of in an event ("internal-error") and started again: a VM's
// policy or an arbiter that has silently ceased is worse than one that comes late. Control thread
// only.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <string>

#include "host/asio.h"
#include "host/event_log.h"

namespace fileballoon::host {

/// Between a failure and the next start: a loop that fails at once must not take a CPU.
inline constexpr std::chrono::milliseconds kRestartPause{1000};

/// Runs `loop()`, and again after `pause` as long as it throws; it must bear being called anew, and
/// return when it has been told to end. The event names `vm` (may be empty) and `what`, and comes
/// when the reason changes. `control` and `events` outlive the loop.
void keep_running(asio::io_context& control, EventLog& events, std::string vm, std::string what,
                  std::function<asio::awaitable<void>()> loop,
                  std::chrono::milliseconds pause = kRestartPause);

/// The text of an exception.
[[nodiscard]] std::string what_of(const std::exception_ptr& failure);

}  // namespace fileballoon::host
