// Job: a piece of work as a batch of them has it: it grows, works for a while on a small part of
// what it holds, needs all of it once more at the end, and is gone. Every page is checked. Body of
// a Task.
#pragma once

#include <cstdint>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

struct JobShape {
  std::uint64_t size = 0;    ///< bytes of anonymous memory
  std::uint64_t hot = 0;     ///< of these, worked on
  std::uint64_t rate = 0;    ///< bytes a second while it grows; 0: as fast as it can
  std::uint64_t passes = 0;  ///< over the hot part
  std::uint64_t seed = 1;
};

/// Replies once, when all is done: `seconds` and of these `grow_s`, `work_s`, `check_s`; `errors`.
void run_job(TaskPort& port, const JobShape& shape);

}  // namespace fileballoon::guest
