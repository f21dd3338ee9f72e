// The multi-generational LRU's own interface, /sys/kernel/debug/lru_gen (Linux 6.1,
// Documentation/admin-guide/mm/multigen_lru.rst): what it prints and what it is told. Text only, no
// system calls; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guest-fs/reclaim/cache_kernel.h"

namespace fileballoon::guest {

struct LruGenList {
  CacheList list;
  std::string cgroup_path;  ///< from the hierarchy's root: "/", "/system.slice"
};

/// Reads the text of lru_gen, or of lru_gen_full beside it, which also says for each generation how
/// many pages of each tier were evicted: tier 0 holds those that were read at most once since they
/// joined the generation, the others those that were read more often. The oldest generation is the
/// first one that holds file pages: the file does not say which generations are spent for file
/// pages (6.12 prints them as empty, later kernels as "-0"), and an empty one is as good as spent.
/// Lines that are not understood are skipped.
[[nodiscard]] std::vector<LruGenList> parse_lru_gen(std::string_view text);

/// Looks at the accessed bits of mapped file pages only (no swap: anonymous memory is none of the
/// cache's business), fully.
[[nodiscard]] std::string age_command(const CacheList& list, std::uint64_t youngest);
/// Swappiness 0: file pages only.
[[nodiscard]] std::string evict_command(const CacheList& list, std::uint64_t generation,
                                        std::uint64_t pages);

}  // namespace fileballoon::guest
