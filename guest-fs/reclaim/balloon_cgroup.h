// BalloonCgroup: the memory cgroup that the balloon's pages are charged to. Page cache belongs to
// the cgroup of the task that reads it first, so the inflater must live in a cgroup where nobody
// else does: then reclaim can be asked of all other cgroups, and the balloon is spared. Made once
// at the start of the inflater, before it has threads. Works with cgroup v2 and with the v1 memory
// controller. Not thread-safe.
#pragma once

#include <string>
#include <vector>

#include "guest-fs/reclaim/kernel_file.h"

namespace fileballoon::guest {

/// Where the memory controller is.
struct MemoryHierarchy {
  std::string root;  ///< directory of the root cgroup; empty: there is none
  std::string own;   ///< this process's cgroup below it, "/" or "/a/b"
  bool v2 = true;
  std::string missing;  ///< why there is none, for a person
};

/// `mountinfo`, `own_cgroups`: texts of /proc/self/mountinfo and /proc/self/cgroup.
/// `fallback_root`: a cgroup2 mount of our own, used where nobody mounted one; may be empty.
[[nodiscard]] MemoryHierarchy find_memory_hierarchy(const std::string& mountinfo,
                                                    const std::string& own_cgroups,
                                                    const std::string& fallback_root);

class BalloonCgroup {
 public:
  static constexpr const char* kName = "balloonfs";

  /// Stays in the present cgroup if only processes of this program live there (a systemd unit),
  /// else moves this process to /balloonfs, which it makes. `proc`: /proc, or a stand-in for tests.
  BalloonCgroup(MemoryHierarchy hierarchy, const std::string& proc = "/proc");

  /// Empty if the balloon has a cgroup of its own; else why not, and the remedy.
  [[nodiscard]] const std::string& missing() const { return missing_; }
  /// The balloon's cgroup, "/balloonfs". Meaningless while something is missing.
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const MemoryHierarchy& hierarchy() const { return hierarchy_; }
  /// The cgroups that together hold everything but the balloon: the siblings of each cgroup on its
  /// path. What is charged directly to a cgroup on the path itself is in none of them.
  [[nodiscard]] std::vector<std::string> others() const;

 private:
  [[nodiscard]] bool is_alone(const std::string& directory, const std::string& proc) const;
  [[nodiscard]] bool has_memory(const std::string& directory) const;
  void move(const std::string& proc);

  MemoryHierarchy hierarchy_;
  std::string path_;
  std::string missing_;
};

}  // namespace fileballoon::guest
