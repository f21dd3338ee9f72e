// Staircase: a workload with a known working set that an order makes larger or smaller. Half of the
// set is anonymous memory, half a part of a file on a disk, read again in every pass; beside that
// each pass reads a little of another file that it never reads again. Every page is checked. Body
// of a Task.
#pragma once

#include <cstdint>
#include <string>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

struct StaircaseFiles {
  std::string hot;   ///< filled with pattern pages of kHotSeed
  std::string once;  ///< likewise, of kOnceSeed
};
inline constexpr std::uint64_t kHotSeed = 11;
inline constexpr std::uint64_t kOnceSeed = 12;
/// Read of the `once` file in each pass.
inline constexpr std::uint64_t kOncePerPass = std::uint64_t{512} << 10;

/// Replies once it is ready; then each order {"size": bytes of the working set, "passes": n}
/// changes the set, makes n passes over it, and replies `seconds`, `errors`, `longest_pass_s`, each
/// pass in `pass_seconds`, and in `in_use` how the set changed: pairs of seconds since the order
/// and bytes in use.
void climb_staircase(TaskPort& port, const StaircaseFiles& files, std::uint64_t largest);

}  // namespace fileballoon::guest
