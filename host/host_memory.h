// HostMemory: what the kernel says about memory on this host (MemAvailable, PSI) and about the
// cgroup of a VMM (cgroup v2: its limits up to the root, what it uses, its stalls). All files are
// read below a root folder, so that tests lay out their own. Thread-safe; reads only.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "fileballoon/arbiter_types.h"

namespace fileballoon::host {

/// The memory controller of a VMM's cgroup.
struct CgroupMemory {
  std::optional<Bytes> limit;  ///< lowest memory.high or memory.max from it up to the root
  Bytes current;               ///< memory.current, of the cgroup itself
  double psi_some = 0;         ///< memory.pressure, some, avg10, percent
  double psi_full = 0;         ///< likewise, full
};

class HostMemory {
 public:
  /// `root` is put before every path.
  explicit HostMemory(std::string root = {}) : root_(std::move(root)) {}

  /// Without PSI (a kernel option) its numbers are zero. The error names the file.
  [[nodiscard]] Result<HostReport> read() const;
  /// Nothing where the process is in no cgroup v2 with a memory controller.
  [[nodiscard]] std::optional<CgroupMemory> cgroup_of(pid_t pid) const;

 private:
  [[nodiscard]] std::optional<std::string> slurp(const std::string& path) const;

  std::string root_;
};

/// The most that guest RAM of `footprint` may grow to inside `cgroup`; what else the VMM uses there
/// counts against the limit. Nothing where there is no limit.
[[nodiscard]] std::optional<Bytes> ceiling_in(const CgroupMemory& cgroup, Bytes footprint);

}  // namespace fileballoon::host
