// LinuxCacheKernel: CacheKernel on a running Linux. It finds out at construction what this kernel
// offers and, where something lacks, says what and what would help. Construct it in the inflater
// before that process reads its first balloon page: pages stay charged to the cgroup they were read
// in.
#pragma once

#include <string>

#include "guest-fs/reclaim/balloon_cgroup.h"
#include "guest-fs/reclaim/cache_kernel.h"
#include "guest-fs/reclaim/kernel_file.h"

namespace fileballoon::guest {

/// Where the kernel's files are; tests put a folder of text files here.
struct KernelPaths {
  std::string proc = "/proc";
  std::string sys = "/sys";
  std::string debug;  ///< empty: find a debugfs mount, or make one
  /// Empty: find the memory hierarchy, or make a mount of cgroup2.
  std::string cgroup;
};

/// Picks what CacheNumbers needs out of /proc/vmstat and /proc/pressure/memory.
[[nodiscard]] CacheNumbers parse_cache_numbers(std::string_view vmstat, std::string_view pressure);

class LinuxCacheKernel final : public CacheKernel {
 public:
  explicit LinuxCacheKernel(KernelPaths paths = {});

  [[nodiscard]] const ReclaimFeatures& features() const override { return features_; }
  [[nodiscard]] CacheNumbers numbers() override;
  [[nodiscard]] std::vector<CacheList> lists() override;
  [[nodiscard]] int age(const CacheList& list, std::uint64_t youngest) override;
  [[nodiscard]] Taken evict(const CacheList& list, std::uint64_t generation,
                            std::uint64_t pages) override;
  [[nodiscard]] Taken step(std::uint64_t pages) override;

 private:
  [[nodiscard]] std::uint64_t stolen() const;
  void find_generations();
  void find_steps();

  KernelPaths paths_;
  KernelMount debug_;
  KernelMount cgroup_mount_;
  BalloonCgroup cgroup_;
  std::string lru_gen_;
  bool say_swappiness_ = true;
  bool may_ask_root_ = false;
  ReclaimFeatures features_;
};

}  // namespace fileballoon::guest
