#include "guest-fs/reclaim/linux_cache_kernel.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "fileballoon/bytes.h"
#include "guest-fs/reclaim/lru_gen.h"

namespace fileballoon::guest {
namespace {

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

MemoryHierarchy hierarchy_of(const KernelPaths& paths, KernelMount& own_mount) {
  const std::string mounts = read_file(paths.proc + "/self/mountinfo");
  const std::string own = read_file(paths.proc + "/self/cgroup");
  if (!paths.cgroup.empty()) {
    return find_memory_hierarchy(mounts, own, paths.cgroup);
  }
  if (find_mount(mounts, "cgroup2").empty() && find_mount(mounts, "cgroup", "memory").empty()) {
    if (auto mount = open_kernel_mount("cgroup2")) {
      own_mount = std::move(*mount);
    }
  }
  return find_memory_hierarchy(mounts, own, own_mount.path);
}

/// Protects the balloon's cgroup while the whole hierarchy is asked to reclaim. memory.low, not
/// memory.min: should this process die in between, the kernel still takes the balloon before it
/// calls the OOM killer.
class LowProtection {
 public:
  explicit LowProtection(std::string directory) : file_(std::move(directory) + "/memory.low") {
    on_ = write_kernel_file(file_, "max") == 0;
  }
  ~LowProtection() {
    if (on_) {
      (void)write_kernel_file(file_, "0");
    }
  }
  LowProtection(const LowProtection&) = delete;
  LowProtection& operator=(const LowProtection&) = delete;
  [[nodiscard]] bool is_on() const { return on_; }

 private:
  std::string file_;
  bool on_ = false;
};

}  // namespace

CacheNumbers parse_cache_numbers(std::string_view vmstat, std::string_view pressure) {
  CacheNumbers numbers;
  while (!vmstat.empty()) {
    const auto end = vmstat.find('\n');
    const std::string_view line = vmstat.substr(0, end);
    vmstat = end == std::string_view::npos ? "" : vmstat.substr(end + 1);
    const auto space = line.find(' ');
    if (space == std::string_view::npos) {
      continue;
    }
    const std::string_view key = line.substr(0, space);
    const std::uint64_t value = std::strtoull(std::string(line.substr(space)).c_str(), nullptr, 10);
    // Before 5.9 the two kinds were counted together.
    if (key == "workingset_refault_file" || key == "workingset_refault") {
      numbers.refaulted = value;
    } else if (key == "nr_active_file" || key == "nr_inactive_file") {
      numbers.file += value;
    } else if (key == "nr_anon_pages") {
      numbers.anonymous = value;
    } else if (key == "nr_mapped") {
      numbers.mapped = value;
    } else if (key == "nr_dirty" || key == "nr_writeback") {
      numbers.dirty += value;
    } else if (key == "pgsteal_file") {
      numbers.stolen = value;
    } else if (key == "pgpgin" || key == "pgfault" || key == "pgfree") {
      numbers.activity += value;
    }
  }
  const auto at = pressure.find("total=");
  if (pressure.starts_with("some") && at != std::string_view::npos) {
    numbers.stalled = std::chrono::microseconds(
        std::strtoll(std::string(pressure.substr(at + 6)).c_str(), nullptr, 10));
  }
  return numbers;
}

LinuxCacheKernel::LinuxCacheKernel(KernelPaths paths)
    : paths_(std::move(paths)), cgroup_(hierarchy_of(paths_, cgroup_mount_), paths_.proc) {
  features_.balloon_cgroup_missing = cgroup_.missing();
  find_generations();
  find_steps();
  if (!parse_cache_numbers("", read_file(paths_.proc + "/pressure/memory")).stalled) {
    features_.pressure_missing =
        "no /proc/pressure/memory (CONFIG_PSI, and psi=1 on the kernel's command line)";
  }
  const std::string vmstat = read_file(paths_.proc + "/vmstat");
  if (vmstat.find("workingset_refault") == std::string::npos) {
    features_.refaults_missing = "no workingset_refault_file in /proc/vmstat (Linux 5.9 has it)";
  }
}

void LinuxCacheKernel::find_generations() {
  std::string& missing = features_.generations_missing;
  const std::string enabled = read_file(paths_.sys + "/kernel/mm/lru_gen/enabled");
  if (enabled.empty()) {
    missing = "this kernel has no multi-generational LRU (Linux 6.1 with CONFIG_LRU_GEN)";
    return;
  }
  if ((std::strtoul(enabled.c_str(), nullptr, 16) & 1U) == 0) {
    missing =
        "the multi-generational LRU is switched off (echo y > /sys/kernel/mm/lru_gen/enabled)";
    return;
  }
  if (!paths_.debug.empty()) {
    debug_.path = paths_.debug;
  } else if (auto mount = open_kernel_mount("debugfs")) {
    debug_ = std::move(*mount);
  } else {
    missing = mount.error().message + " (it holds the commands of the multi-generational LRU)";
    return;
  }
  lru_gen_ = debug_.path + "/lru_gen";
  if (!exists(lru_gen_)) {
    missing = "debugfs has no lru_gen (CONFIG_DEBUG_FS_ALLOW_ALL)";
    return;
  }
  if (const int error = can_write(lru_gen_); error != 0) {
    missing =
        "balloonfs may not write /sys/kernel/debug/lru_gen: " + std::string(std::strerror(error)) +
        " (root, and no kernel lockdown)";
    return;
  }
  if (cgroup_.missing().empty()) {
    const auto all = parse_lru_gen(read_file(lru_gen_));
    const bool listed = std::any_of(all.begin(), all.end(), [&](const LruGenList& one) {
      return one.cgroup_path == cgroup_.path();
    });
    if (!listed) {
      missing = "/sys/kernel/debug/lru_gen does not list the balloon's cgroup " + cgroup_.path() +
                " (is balloonfs in a container?)";
    }
  }
}

void LinuxCacheKernel::find_steps() {
  std::string& missing = features_.steps_missing;
  if (!cgroup_.missing().empty()) {
    missing = cgroup_.missing();
    return;
  }
  if (!cgroup_.hierarchy().v2) {
    missing = "the memory controller is in cgroup v1, which has no memory.reclaim";
    return;
  }
  const std::string own = cgroup_.hierarchy().root + cgroup_.path() + "/memory.reclaim";
  if (!exists(own)) {
    missing = "cgroup v2 has no memory.reclaim here (Linux 5.19 has it)";
    return;
  }
  // What is charged to the root cgroup itself is reached only by asking it to reclaim from
  // everybody, with memory.low for the balloon. The multi-generational LRU takes such a cgroup all
  // the same once it has visited the others (seen on 6.12: all of the balloon went), so not there.
  const std::string lru_gen = read_file(paths_.sys + "/kernel/mm/lru_gen/enabled");
  may_ask_root_ = (std::strtoul(lru_gen.c_str(), nullptr, 16) & 1U) == 0 &&
                  cgroup_.path().rfind('/') == 0 &&
                  exists(cgroup_.hierarchy().root + "/memory.reclaim");
  // Asking for nothing tells whether the key is known.
  if (const int error = write_kernel_file(own, "0 swappiness=0"); error == EINVAL) {
    say_swappiness_ = false;
    if (read_file(paths_.proc + "/swaps").find('/') != std::string::npos) {
      missing =
          "memory.reclaim has no swappiness= key here (Linux 6.10 has it), so it could swap out "
          "anonymous memory";
    }
  } else if (error != 0 && error != EAGAIN) {
    missing = "balloonfs may not write memory.reclaim: " + std::string(std::strerror(error));
  }
}

CacheNumbers LinuxCacheKernel::numbers() {
  return parse_cache_numbers(read_file(paths_.proc + "/vmstat"),
                             read_file(paths_.proc + "/pressure/memory"));
}

std::vector<CacheList> LinuxCacheKernel::lists() {
  std::vector<CacheList> others;
  // With tiers where they are shown: a file that lacks is read as empty.
  std::string text = read_file(lru_gen_ + "_full");
  if (text.empty()) {
    text = read_file(lru_gen_);
  }
  for (LruGenList& one : parse_lru_gen(text)) {
    if (one.cgroup_path != cgroup_.path()) {
      others.push_back(one.list);
    }
  }
  return others;
}

std::uint64_t LinuxCacheKernel::stolen() const {
  return parse_cache_numbers(read_file(paths_.proc + "/vmstat"), "").stolen;
}

int LinuxCacheKernel::age(const CacheList& list, std::uint64_t youngest) {
  return write_kernel_file(lru_gen_, age_command(list, youngest));
}

Taken LinuxCacheKernel::evict(const CacheList& list, std::uint64_t generation,
                              std::uint64_t pages) {
  // The kernel does not answer how many went; what others reclaim meanwhile is counted with it.
  const std::uint64_t before = stolen();
  const int error = write_kernel_file(lru_gen_, evict_command(list, generation, pages));
  return {stolen() - before, error};
}

Taken LinuxCacheKernel::step(std::uint64_t pages) {
  const std::string suffix = say_swappiness_ ? " swappiness=0" : "";
  const std::uint64_t before = stolen();
  int error = 0;
  // Each cgroup in turn, the rest from the next: EAGAIN says that it had less.
  for (const std::string& directory : cgroup_.others()) {
    const std::uint64_t taken = stolen() - before;
    if (taken >= pages) {
      return {taken, 0};
    }
    const std::uint64_t bytes = (pages - taken) * kPageSize;
    error = write_kernel_file(directory + "/memory.reclaim", std::to_string(bytes) + suffix);
  }
  const std::uint64_t taken = stolen() - before;
  if (taken < pages && may_ask_root_) {
    const LowProtection spare_the_balloon(cgroup_.hierarchy().root + cgroup_.path());
    if (spare_the_balloon.is_on()) {
      error = write_kernel_file(cgroup_.hierarchy().root + "/memory.reclaim",
                                std::to_string((pages - taken) * kPageSize) + suffix);
    }
  }
  const std::uint64_t all = stolen() - before;
  return {all, error == EAGAIN ? 0 : error};
}

}  // namespace fileballoon::guest
