// Liar: an agent that speaks the protocol well and lies about its frames. The host must not believe
// it: data that it names must stay, whenever it was written. It takes the place of balloonfs on the
// channel, which must be free.
#pragma once

#include <cstdint>
#include <string>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

/// Reports `pages` pages of its own that hold the pattern, and after the ACK checks every byte.
/// Result: `discarded`, `not_zero`, `refused`, `failed` as acknowledged and `errors` found.
void report_live_data(TaskPort& port, const std::string& channel, std::uint64_t pages);

/// `rounds` times: clears `pages` pages, reports them, and while the host works on the report
/// writes the pattern into each of them; after the ACK every byte must be there. Result as above,
/// summed over the rounds, and `written_before_ack`.
void report_while_writing(TaskPort& port, const std::string& channel, std::uint64_t pages,
                          std::uint64_t rounds);

}  // namespace fileballoon::guest
