// Memory work: what the tasks of the workload do with memory. Each function is the body of a Task.
#pragma once

#include <cstdint>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

/// Fills `size` bytes of anonymous memory with the pattern of `seed`, reports `fill_s` and `pages`,
/// then waits for orders: {"check": true} verifies every page and reports `errors` (and the first
/// wrong page). It keeps its memory until it is killed.
void hold_memory(TaskPort& port, std::uint64_t size, std::uint64_t seed);

/// Writes to every page of `size` bytes and gives all of it back: the guest has it free again, the
/// host still has memory behind it.
void touch_and_free(TaskPort& port, std::uint64_t size);

/// Reads a whole file through the page cache: `bytes`, `read_s`.
void read_file(TaskPort& port, const std::string& path);

}  // namespace fileballoon::guest
