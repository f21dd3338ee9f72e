// The names that users type for a VM's memory policy and for the actor that carries it out, and
// what they mean. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon {

/// Which mechanism brings a VM to its target first, and which may help when that is not enough.
enum class MemoryPolicy : std::uint8_t {
  balloon_then_page,  ///< the default
  balloon_only,
  page_only,
  page_then_balloon,
};

/// "balloon-then-page" and the like. The error lists all names.
[[nodiscard]] Result<MemoryPolicy> parse_policy(std::string_view text);
[[nodiscard]] std::string_view to_string(MemoryPolicy policy);

/// Who makes a VM reach its target.
struct ActorName {
  enum class Kind : std::uint8_t {
    builtin,   ///< a registered part of the daemon, by name
    external,  ///< a program of somebody else, by absolute path; the daemon only watches
  };
  Kind kind = Kind::builtin;
  std::string name;  ///< the registered name, or the path
  bool operator==(const ActorName&) const = default;
};

/// The daemon's own actor, which every VM has unless another is chosen.
inline constexpr std::string_view kDefaultActor = "fileballoon";

/// Parses "NAME", which must be among `registered`, or "external:PATH". A path is absolute, without
/// "." and ".." components, control characters or a trailing slash, and fits PATH_MAX, so that it
/// means one file and can be printed. Whether the file exists is the daemon's to see. The error
/// says which rule was broken and lists the registered names.
[[nodiscard]] Result<ActorName> parse_actor(std::string_view text,
                                            std::span<const std::string_view> registered);
/// As it is typed.
[[nodiscard]] std::string to_string(const ActorName& actor);

}  // namespace fileballoon
