// DeflateMode: what a guest says to its host when balloon pages go back into use. Pure;
// thread-safe. The guest chooses at mount (`-o deflate=`); docs/guest.md explains what each costs.
#pragma once

#include <cstdint>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon {

/// The values travel in STATS and are never reused.
enum class DeflateMode : std::uint8_t {
  silent = 0,           ///< nothing: reclaim takes pages, and the host sees the faults
  batched = 1,          ///< DEFLATED names the frames that have left, now and then
  tell_host_first = 2,  ///< pages are locked, and the host backs them before the guest uses them
};
inline constexpr DeflateMode kLastDeflateMode = DeflateMode::tell_host_first;

[[nodiscard]] std::string_view to_string(DeflateMode mode);
/// Accepts the spelling of to_string(); the error lists all of them.
[[nodiscard]] Result<DeflateMode> parse_deflate_mode(std::string_view text);

}  // namespace fileballoon
