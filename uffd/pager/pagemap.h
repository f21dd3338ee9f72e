// Pagemap: which pages a process has mapped, seen from outside. PAGEMAP_SCAN where the kernel has
// it (6.7), else plain reads of /proc/PID/pagemap, which are slower. For one thread at a time.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"
#include "uffd/userfaultfd.h"

namespace fileballoon {

class Pagemap {
 public:
  enum class Want {
    present,   ///< mapped now
    writable,  ///< mapped now and not write-protected by a userfaultfd
  };

  /// The error names the process and what forbids it.
  [[nodiscard]] static Result<Pagemap> open(pid_t pid);

  /// Calls `visit` for each run of such pages in `range`, ascending. False if the process is gone.
  [[nodiscard]] bool scan(AddressRange range, Want want,
                          const std::function<void(AddressRange)>& visit);

 private:
  explicit Pagemap(UniqueFd fd) : fd_(std::move(fd)) {}
  [[nodiscard]] bool scan_by_reading(AddressRange range, Want want,
                                     const std::function<void(AddressRange)>& visit);

  UniqueFd fd_;
  bool has_scan_ = true;
  std::vector<std::uint64_t> buffer_;
};

}  // namespace fileballoon
