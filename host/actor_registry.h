// The actors that `mem-policy --actor` knows by name, and which mechanisms each of them may use.
// A name stands for a set of mechanisms: the daemon's own actor for all, `balloon` and `pager` for
// one. Programs of others are "external:PATH" (host/external_actor.h). Pure; thread-safe.
#pragma once

#include <span>
#include <string_view>

#include "fileballoon/policy_names.h"

namespace fileballoon::host {

struct RegisteredActor {
  std::string_view name;
  bool can_balloon = false;
  bool can_page = false;
  std::string_view what;  ///< for people
};

[[nodiscard]] std::span<const RegisteredActor> registered_actors();
/// Their names, for parse_actor().
[[nodiscard]] std::span<const std::string_view> actor_names();

/// What `policy` comes to in the hands of `actor`: of balloon-then-page, the actor `balloon` does
/// balloon-only, without waiting for a mechanism that it does not use. The error says that they
/// have no mechanism in common. An external actor does as it likes.
[[nodiscard]] Result<MemoryPolicy> effective_policy(MemoryPolicy policy, const ActorName& actor);

}  // namespace fileballoon::host
