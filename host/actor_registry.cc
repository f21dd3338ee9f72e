#include "host/actor_registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace fileballoon::host {
namespace {

constexpr std::array kActors = {
    RegisteredActor{kDefaultActor, true, true, "the daemon, by all mechanisms of the policy"},
    RegisteredActor{"balloon", true, false, "the daemon, by the guest's balloon alone"},
    RegisteredActor{"pager", false, true, "the daemon, by paging alone"},
};

constexpr std::array<std::string_view, kActors.size()> kNames = {kActors[0].name, kActors[1].name,
                                                                 kActors[2].name};

}  // namespace

std::span<const RegisteredActor> registered_actors() { return kActors; }
std::span<const std::string_view> actor_names() { return kNames; }

Result<MemoryPolicy> effective_policy(MemoryPolicy policy, const ActorName& actor) {
  if (actor.kind == ActorName::Kind::external) {
    return policy;
  }
  const auto* const found = std::find_if(
      kActors.begin(), kActors.end(), [&](const auto& known) { return known.name == actor.name; });
  if (found == kActors.end() || (found->can_balloon && found->can_page)) {
    return policy;
  }
  const MemoryPolicy only =
      found->can_balloon ? MemoryPolicy::balloon_only : MemoryPolicy::page_only;
  const MemoryPolicy other =
      found->can_balloon ? MemoryPolicy::page_only : MemoryPolicy::balloon_only;
  if (policy == other) {
    return Error{
        fmt::format("the actor '{}' cannot carry out {}; choose the policy {} or the actor {}",
                    actor.name, to_string(policy), to_string(only), kDefaultActor)};
  }
  return only;
}

}  // namespace fileballoon::host
