// Cold page cache, the choices: which modes there are for turning the guest's cold page cache into
// memory that the balloon can take, which of the kernel's interfaces each mode works through, and
// what is said when an interface lacks. Pure; thread-safe. The guest agent asks once at start and
// whenever the host chooses another mode; docs/cold-cache.md explains the modes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon {

/// The values travel on the wire and are never reused.
enum class CacheMode : std::uint8_t {
  off = 0,             ///< page cache is left alone
  unmapped_first = 1,  ///< only when the balloon wants to grow and free memory is short
  proactive = 2,       ///< cold cache goes steadily, as fast as no workload notices
  epoch = 3,           ///< what was not used since the host's last epoch goes
};
inline constexpr CacheMode kLastCacheMode = CacheMode::epoch;

[[nodiscard]] std::string_view to_string(CacheMode mode);
/// Accepts the spelling of to_string(); the error lists all of them.
[[nodiscard]] Result<CacheMode> parse_cache_mode(std::string_view text);

/// How pages are taken. The values travel in STATS and are never reused.
enum class ReclaimMethod : std::uint8_t {
  none = 0,
  generations = 1,  ///< commands to the multi-generational LRU, per memory cgroup
  steps = 2,        ///< memory.reclaim in small steps, on every memory cgroup but the balloon's
};

[[nodiscard]] std::string_view to_string(ReclaimMethod method);

/// What the guest's kernel offers. Where something lacks, the text beside it says what and why, for
/// a person; it is empty otherwise.
struct ReclaimFeatures {
  std::string generations_missing;  ///< /sys/kernel/debug/lru_gen
  std::string steps_missing;        ///< memory.reclaim, and a way to keep it off anonymous memory
  std::string balloon_cgroup_missing;  ///< the balloon's pages in a memory cgroup of their own
  std::string pressure_missing;        ///< /proc/pressure/memory
  std::string refaults_missing;        ///< workingset_refault_file in /proc/vmstat
};

struct MethodChoice {
  ReclaimMethod method = ReclaimMethod::none;
  /// Empty where the mode works as designed; else what lacks and what is done instead.
  std::string note;
};

/// The best method for `mode`. Without a cgroup of its own the balloon's pages, clean and inactive
/// themselves, would be the first to be taken, so then there is no method at all. Without refault
/// counts nothing would tell that hot cache goes, so the modes that pace themselves need them.
[[nodiscard]] MethodChoice choose_method(CacheMode mode, const ReclaimFeatures& features);

}  // namespace fileballoon
