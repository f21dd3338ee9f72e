// AccessTracker: finds out which pages of a running VMM are in use, and so which are cold. Each
// look asks the kernel which pages are mapped (or written) since the last look, makes those young,
// ages the others, and sets the trap for the next look. docs/paging.md has what each way of seeing
// accesses gave. For one thread at a time.
#pragma once

#include <sys/types.h>

#include <string_view>
#include <vector>

#include "uffd/pager/age_map.h"
#include "uffd/pager/pagemap.h"
#include "uffd/watched_ram.h"

namespace fileballoon {

enum class AccessMethod {
  /// Unmap pages from the VMM with process_madvise(MADV_PAGEOUT) and see which come back. Sees
  /// reads and writes; a touched page costs the guest one minor fault of the kernel's,
  /// no userfaultfd is involved. Without swap the kernel unmaps shared pages and cannot write them
  /// anywhere, so they stay in memory; with swap it would swap them out.
  unmap,
  /// Write-protect pages and see which were written since. Sees writes only, and each costs the
  /// guest a userfaultfd round trip. The way out on hosts with swap.
  write_protect,
};

[[nodiscard]] std::string_view to_string(AccessMethod method);

class AccessTracker {
 public:
  /// `pid`: the process that `ram` is mapped in; `ages`: one map an object. Both outlive this.
  /// Picks the method: `unmap`, but `write_protect` where /proc/swaps names an active swap. Tries
  /// it on one page; the error says what the kernel wants.
  [[nodiscard]] static Result<AccessTracker> create(WatchedRam& ram, pid_t pid,
                                                    std::vector<AgeMap*> ages);
  [[nodiscard]] static Result<AccessTracker> create(WatchedRam& ram, pid_t pid,
                                                    std::vector<AgeMap*> ages, AccessMethod method);

  struct Look {
    std::uint64_t accessed = 0;  ///< pages in use since the last look
    int error = 0;  ///< ESRCH: the process is gone; any other: the kernel refused, it was no look
  };
  /// Costs most for pages that are in use (`bench/pager_access` measures it).
  [[nodiscard]] Look look();
  /// The same for a part of one object: only its pages grow older, and only they cost anything.
  [[nodiscard]] Look look_at(std::uint32_t object, HostRange range);
  /// A second look at what was looked at a while ago, which sets no traps: it costs the guest
  /// nothing, and the next look at these pages sees those that this one saw.
  [[nodiscard]] Look look_again_at(std::uint32_t object, HostRange range);

  [[nodiscard]] AccessMethod method() const { return method_; }

 private:
  AccessTracker(WatchedRam& ram, UniqueFd pidfd, Pagemap pagemap, std::vector<AgeMap*> ages,
                AccessMethod method)
      : ram_(&ram),
        pidfd_(std::move(pidfd)),
        pagemap_(std::move(pagemap)),
        ages_(std::move(ages)),
        method_(method) {}
  [[nodiscard]] bool gone() const;
  enum class Traps { set, left };
  [[nodiscard]] Look look_at(std::uint32_t object, HostRange range, Traps traps);
  /// Makes pages that were used in `where` young.
  void look_at_place(const WatchedRam::Region& region, AddressRange where, Traps traps,
                     Look& result);
  [[nodiscard]] int set_trap(const WatchedRam::Region& region, AddressRange where);

  WatchedRam* ram_;
  UniqueFd pidfd_;
  Pagemap pagemap_;
  std::vector<AgeMap*> ages_;
  AccessMethod method_;
  std::vector<AddressRange> seen_;
};

}  // namespace fileballoon
