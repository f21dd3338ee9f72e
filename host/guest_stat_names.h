// The numbers of a guest's STATS that the daemon keeps, under the names that `stats` shows them by.
// What is kept for a guest must not grow with what it sends: other keys are dropped.
#pragma once

#include <array>

#include "fileballoon/wire.h"

namespace fileballoon::host {

struct StatName {
  wire::StatKey key;
  const char* name;
  bool pages;  // shown in bytes
};

inline constexpr std::array kStatNames = {
    StatName{wire::StatKey::resident_pages, "resident_bytes", true},
    StatName{wire::StatKey::target_pages, "target_bytes", true},
    StatName{wire::StatKey::floor_pages, "floor_bytes", true},
    StatName{wire::StatKey::locked_pages, "locked_bytes", true},
    StatName{wire::StatKey::in_flight_pages, "in_flight_bytes", true},
    StatName{wire::StatKey::evicted_pages, "evicted_pages", false},
    StatName{wire::StatKey::migrated_pages, "migrated_pages", false},
    StatName{wire::StatKey::refused_pages, "refused_pages", false},
    StatName{wire::StatKey::inflated_pages, "inflated_pages", false},
    StatName{wire::StatKey::mem_total_bytes, "mem_total_bytes", false},
    StatName{wire::StatKey::mem_free_bytes, "mem_free_bytes", false},
    StatName{wire::StatKey::mem_available_bytes, "mem_available_bytes", false},
    StatName{wire::StatKey::cached_bytes, "cached_bytes", false},
    StatName{wire::StatKey::psi_some_avg10_centi, "psi_some_avg10_centi", false},
    StatName{wire::StatKey::psi_full_avg10_centi, "psi_full_avg10_centi", false},
    StatName{wire::StatKey::oom_kills, "oom_kills", false},
    StatName{wire::StatKey::growth_reason, "growth_reason", false},
    StatName{wire::StatKey::cache_mode, "cache_mode", false},
    StatName{wire::StatKey::cache_method, "cache_method", false},
    StatName{wire::StatKey::cache_evicted_pages, "cache_evicted_pages", false},
    StatName{wire::StatKey::cache_purged_pages, "cache_purged_pages", false},
    StatName{wire::StatKey::cache_pauses, "cache_pauses", false},
    StatName{wire::StatKey::epoch, "epoch", false},
    StatName{wire::StatKey::deflate_mode, "deflate_mode", false},
};

}  // namespace fileballoon::host
