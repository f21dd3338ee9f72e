// The numbers of a guest's STATS that the daemon keeps, under the names that `stats` shows them by.
// What is kept for a guest must not grow with what it sends: other keys are dropped.
#pragma once

#include <array>

#include "fileballoon/wire.h"

namespace fileballoon::host {

struct StatName {
  wire::StatKey key;
  const char* name;
  enum class As { number, pages_in_bytes, centi, growth, cache_mode, method, deflate_mode } as;
};

using As = StatName::As;

inline constexpr std::array kStatNames = {
    StatName{wire::StatKey::resident_pages, "resident_bytes", As::pages_in_bytes},
    StatName{wire::StatKey::target_pages, "target_bytes", As::pages_in_bytes},
    StatName{wire::StatKey::floor_pages, "floor_bytes", As::pages_in_bytes},
    StatName{wire::StatKey::locked_pages, "locked_bytes", As::pages_in_bytes},
    StatName{wire::StatKey::in_flight_pages, "in_flight_bytes", As::pages_in_bytes},
    StatName{wire::StatKey::evicted_pages, "evicted_pages", As::number},
    StatName{wire::StatKey::migrated_pages, "migrated_pages", As::number},
    StatName{wire::StatKey::refused_pages, "refused_pages", As::number},
    StatName{wire::StatKey::inflated_pages, "inflated_pages", As::number},
    StatName{wire::StatKey::mem_total_bytes, "mem_total_bytes", As::number},
    StatName{wire::StatKey::mem_free_bytes, "mem_free_bytes", As::number},
    StatName{wire::StatKey::mem_available_bytes, "mem_available_bytes", As::number},
    StatName{wire::StatKey::cached_bytes, "cached_bytes", As::number},
    StatName{wire::StatKey::psi_some_avg10_centi, "psi_some_avg10_percent", As::centi},
    StatName{wire::StatKey::psi_full_avg10_centi, "psi_full_avg10_percent", As::centi},
    StatName{wire::StatKey::oom_kills, "oom_kills", As::number},
    StatName{wire::StatKey::growth_reason, "growth", As::growth},
    StatName{wire::StatKey::cache_mode, "cache_mode", As::cache_mode},
    StatName{wire::StatKey::cache_method, "cache_method", As::method},
    StatName{wire::StatKey::cache_evicted_pages, "cache_evicted_pages", As::number},
    StatName{wire::StatKey::cache_purged_pages, "cache_purged_pages", As::number},
    StatName{wire::StatKey::cache_pauses, "cache_pauses", As::number},
    StatName{wire::StatKey::epoch, "epoch", As::number},
    StatName{wire::StatKey::deflate_mode, "deflate", As::deflate_mode},
};

}  // namespace fileballoon::host
