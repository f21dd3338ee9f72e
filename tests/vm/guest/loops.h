// Loops: work that something else may disturb, measured operation by operation. Bodies of a Task.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

/// An operation writes one word in each of 64 random pages of `size` bytes of anonymous memory.
void loop_over_memory(TaskPort& port, std::uint64_t size);
/// An operation adds to every word of the next 64 pages of `size` bytes of anonymous memory.
void stream_over_memory(TaskPort& port, std::uint64_t size);
/// An operation reads 256 KiB at a random place of the first `size` bytes of a cached file.
void loop_over_file(TaskPort& port, const std::string& path, std::uint64_t size);

// They reply once their memory or file is warm; then each order {"seconds": s} runs operations for
// so long and replies `operations`, `seconds`, `p50_us`, `p99_us`, and in `waited_s` for how long
// the loop was ready to run and had no CPU of the guest.

/// Replies, and from then on wakes up on that CPU `every` so often, which makes the CPU leave the
/// address space of what runs there and come back to it. Runs until it is killed. Throws
/// std::system_error where there is no such CPU.
void switch_address_spaces(TaskPort& port, unsigned cpu, std::chrono::microseconds every);

}  // namespace fileballoon::guest
