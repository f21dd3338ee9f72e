// What `cat stats` shows: one JSON object with the balloon's numbers and the reason why it is not
// growing. Pure; thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "fileballoon/limits.h"
#include "guest-fs/shared_block.h"

namespace fileballoon::guest {

/// `channel` is quoted as JSON needs it. Ends with a newline.
[[nodiscard]] std::string stats_json(const AgentStats& stats, const Limits& limits, Bytes ram,
                                     std::string_view channel);

}  // namespace fileballoon::guest
