#include "fileballoon/cold_cache.h"

#include <array>

namespace fileballoon {
namespace {

constexpr std::array kModes = {CacheMode::off, CacheMode::unmapped_first, CacheMode::proactive,
                               CacheMode::epoch};

}  // namespace

std::string_view to_string(CacheMode mode) {
  switch (mode) {
    case CacheMode::off:
      return "off";
    case CacheMode::unmapped_first:
      return "unmapped-first";
    case CacheMode::proactive:
      return "proactive";
    case CacheMode::epoch:
      return "epoch";
  }
  return "unknown";
}

Result<CacheMode> parse_cache_mode(std::string_view text) {
  std::string known;
  for (const CacheMode mode : kModes) {
    if (text == to_string(mode)) {
      return mode;
    }
    known += known.empty() ? "" : ", ";
    known += to_string(mode);
  }
  return Error{"\"" + std::string(text) + "\" is not a cache mode; use one of: " + known};
}

std::string_view to_string(ReclaimMethod method) {
  switch (method) {
    case ReclaimMethod::none:
      return "none";
    case ReclaimMethod::generations:
      return "generations";
    case ReclaimMethod::steps:
      return "steps";
  }
  return "unknown";
}

MethodChoice choose_method(CacheMode mode, const ReclaimFeatures& features) {
  if (mode == CacheMode::off) {
    return {};
  }
  const std::string name(to_string(mode));
  if (!features.balloon_cgroup_missing.empty()) {
    return {ReclaimMethod::none, name + ": not possible, " + features.balloon_cgroup_missing};
  }
  // The host's epochs set their own pace; the other modes must see the harm that they do.
  if (mode != CacheMode::epoch && !features.refaults_missing.empty()) {
    return {ReclaimMethod::none, name + ": not possible, " + features.refaults_missing};
  }
  MethodChoice choice{ReclaimMethod::generations, ""};
  if (!features.generations_missing.empty()) {
    if (!features.steps_missing.empty()) {
      return {ReclaimMethod::none, name + ": not possible, " + features.generations_missing +
                                       "; and " + features.steps_missing};
    }
    choice = {ReclaimMethod::steps,
              name + ": in small steps of memory.reclaim, " + features.generations_missing};
  }
  if (!features.pressure_missing.empty()) {
    choice.note += choice.note.empty() ? name + ": paced by refaults alone, " : "; ";
    choice.note += features.pressure_missing;
  }
  return choice;
}

}  // namespace fileballoon
