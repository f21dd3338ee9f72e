// CacheKernel: what the cold-cache component asks of a kernel, as an interface: numbers, the lists
// of pages that are not the balloon's, and the kernel's own reclaim on them. LinuxCacheKernel is
// the real one; tests drive ColdCache with a simulated one. Calls block while the kernel works
// (microseconds to some hundred milliseconds). Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fileballoon/cold_cache.h"
#include "fileballoon/cold_cache_turn.h"

namespace fileballoon::guest {

/// Counters run since boot; the rest is as of now. Pages, unless said otherwise.
struct CacheNumbers {
  std::uint64_t refaulted = 0;                       ///< workingset_refault_file
  std::uint64_t stolen = 0;                          ///< pgsteal_file: file pages that reclaim took
  std::optional<std::chrono::microseconds> stalled;  ///< PSI of memory, "some", total
  std::uint64_t file = 0;       ///< page cache on the LRU lists, the balloon's pages included
  std::uint64_t mapped = 0;     ///< of any kind, mapped into a process
  std::uint64_t anonymous = 0;  ///< nr_anon_pages
  std::uint64_t dirty = 0;      ///< to be written, or being written
  /// A counter that hardly moves in a guest where nothing happens: page faults, freed pages, KiB
  /// read from disks.
  std::uint64_t activity = 0;
};

/// The pages of one memory cgroup on one node.
struct CacheList {
  std::uint64_t cgroup = 0;  ///< the kernel's memory cgroup id
  unsigned node = 0;
  GenerationView view;
  /// Pages that were evicted though they had been read more than once since they joined their
  /// generation; counts anew with each generation. Nothing where the kernel does not say.
  std::optional<std::uint64_t> evicted_in_use;
};

struct Taken {
  std::uint64_t pages = 0;
  int error = 0;  ///< errno value; pages may have been taken all the same
};

class CacheKernel {
 public:
  virtual ~CacheKernel() = default;

  [[nodiscard]] virtual const ReclaimFeatures& features() const = 0;
  [[nodiscard]] virtual CacheNumbers numbers() = 0;
  /// Every list but the balloon's. Only with the generations feature.
  [[nodiscard]] virtual std::vector<CacheList> lists() = 0;
  /// Opens generation `youngest` + 1 of the list; pages that were used through a mapping since the
  /// last time move there. 0 or an errno value.
  [[nodiscard]] virtual int age(const CacheList& list, std::uint64_t youngest) = 0;
  /// Evicts clean file pages of the list from generations up to `generation`, about `pages`.
  [[nodiscard]] virtual Taken evict(const CacheList& list, std::uint64_t generation,
                                    std::uint64_t pages) = 0;
  /// Has the kernel choose about `pages` file pages anywhere but in the balloon, and evict them.
  /// Only with the steps feature.
  [[nodiscard]] virtual Taken step(std::uint64_t pages) = 0;
};

}  // namespace fileballoon::guest
