#include "fileballoon/policy_names.h"

#include <algorithm>
#include <array>
#include <climits>
#include <utility>

namespace fileballoon {
namespace {

constexpr std::array<std::pair<std::string_view, MemoryPolicy>, 4> kPolicies = {{
    {"balloon-then-page", MemoryPolicy::balloon_then_page},
    {"balloon-only", MemoryPolicy::balloon_only},
    {"page-only", MemoryPolicy::page_only},
    {"page-then-balloon", MemoryPolicy::page_then_balloon},
}};

constexpr std::string_view kExternal = "external:";

/// What is wrong with a path, or nothing.
std::string_view fault_of(std::string_view path) {
  if (path.empty()) {
    return "the path is missing";
  }
  if (path.front() != '/') {
    return "the path must be absolute";
  }
  if (path.size() >= PATH_MAX) {
    return "the path is longer than the system allows";
  }
  if (std::any_of(path.begin(), path.end(),
                  [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; })) {
    return "the path has control characters";
  }
  if (path.back() == '/') {
    return "the path names a folder";
  }
  while (!path.empty()) {
    path.remove_prefix(1);  // the slash
    const std::string_view part = path.substr(0, path.find('/'));
    if (part == "." || part == "..") {
      return "the path must not go through '.' or '..'";
    }
    path.remove_prefix(part.size());
  }
  return {};
}

/// User text inside a message: nothing that a terminal would obey.
std::string printable(std::string_view text) {
  std::string out(text.substr(0, 200));
  std::replace_if(
      out.begin(), out.end(),
      [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '?');
  return out;
}

}  // namespace

Result<MemoryPolicy> parse_policy(std::string_view text) {
  std::string names;
  for (const auto& [name, policy] : kPolicies) {
    if (text == name) {
      return policy;
    }
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return Error{"unknown policy '" + printable(text) + "'; choose one of " + names};
}

std::string_view to_string(MemoryPolicy policy) {
  for (const auto& [name, value] : kPolicies) {
    if (value == policy) {
      return name;
    }
  }
  return "?";
}

Result<ActorName> parse_actor(std::string_view text, std::span<const std::string_view> registered) {
  if (text.substr(0, kExternal.size()) == kExternal) {
    const std::string_view path = text.substr(kExternal.size());
    if (const std::string_view fault = fault_of(path); !fault.empty()) {
      return Error{"bad actor '" + printable(text) + "': " + std::string(fault) +
                   "; write external:/absolute/path/of/the/program"};
    }
    return ActorName{ActorName::Kind::external, std::string(path)};
  }
  std::string names;
  for (const std::string_view name : registered) {
    if (text == name) {
      return ActorName{ActorName::Kind::builtin, std::string(name)};
    }
    names += std::string(name) + ", ";
  }
  return Error{"unknown actor '" + printable(text) + "'; choose " + names + "or external:PATH"};
}

std::string to_string(const ActorName& actor) {
  return actor.kind == ActorName::Kind::external ? std::string(kExternal) + actor.name : actor.name;
}

}  // namespace fileballoon
