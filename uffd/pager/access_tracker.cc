#include "uffd/pager/access_tracker.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

namespace fileballoon {
namespace {

constexpr Bytes kGap = Bytes(std::uint64_t{512} << 10);

bool swap_is_active() {
  std::ifstream swaps("/proc/swaps");
  std::string line;
  std::getline(swaps, line);  // the heading
  return static_cast<bool>(std::getline(swaps, line));
}

}  // namespace

std::string_view to_string(AccessMethod method) {
  return method == AccessMethod::unmap ? "unmap" : "write-protect";
}

Result<AccessTracker> AccessTracker::create(WatchedRam& ram, pid_t pid, std::vector<AgeMap*> ages) {
  return create(ram, pid, std::move(ages),
                swap_is_active() ? AccessMethod::write_protect : AccessMethod::unmap);
}

Result<AccessTracker> AccessTracker::create(WatchedRam& ram, pid_t pid, std::vector<AgeMap*> ages,
                                            AccessMethod method) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    return Error{"pid " + std::to_string(pid) + ": " + std::strerror(errno)};
  }
  auto pagemap = Pagemap::open(pid);
  if (!pagemap) {
    return pagemap.error();
  }
  return AccessTracker(ram, std::move(pidfd), std::move(*pagemap), std::move(ages), method);
}

AccessTracker::Look AccessTracker::look() {
  Look result;
  const auto want =
      method_ == AccessMethod::unmap ? Pagemap::Want::present : Pagemap::Want::writable;
  // Everything is a look older, what was used is young again. (An object mapped twice ages by the
  // first of its places and is made young by any.)
  for (std::uint32_t object = 0; object < ages_.size(); ++object) {
    for (std::uint64_t page = 0; page < ram_->frames(object).pages(); ++page) {
      ages_[object]->grow_older(page);
    }
  }
  for (const WatchedRam::Region& region : ram_->regions()) {
    seen_.clear();
    result.complete = pagemap_.scan(region.where, want, [&](AddressRange run) {
      seen_.push_back(run);
    }) && result.complete;
    for (const AddressRange& run : seen_) {
      const std::uint64_t first = region.page_of(run.start);
      for (std::uint64_t i = 0; i < run.size.whole_pages(); ++i) {
        ages_[region.object]->set(first + i, 0);
      }
      result.accessed += run.size.whole_pages();
    }
    // A call costs as much as a hundred pages, and the trap does nothing to pages that were not
    // touched: gaps are taken along.
    for (std::size_t i = 0; i < seen_.size();) {
      AddressRange span = seen_[i];
      for (++i; i < seen_.size() && seen_[i].start - span.end() <= kGap.count(); ++i) {
        span.size = Bytes(seen_[i].end() - span.start);
      }
      result.complete = set_trap(region, span) && result.complete;
    }
  }
  return result;
}

bool AccessTracker::set_trap(const WatchedRam::Region& region, AddressRange where) {
  if (method_ == AccessMethod::write_protect) {
    return ram_->shard_of(region).protect(where).status == UffdStatus::done;
  }
  // Up to a piece a call: the VMM's mmap lock is held for less than a millisecond.
  while (where.size.count() > 0) {
    const std::uint64_t length = std::min(where.size.count(), RangeLocks::kPiece.count());
    const iovec range{reinterpret_cast<void*>(where.start), length};
    const long done = ::syscall(SYS_process_madvise, pidfd_.get(), &range, 1, MADV_PAGEOUT, 0);
    if (done <= 0) {
      return false;
    }
    where.start += static_cast<std::uint64_t>(done);
    where.size = where.size - Bytes(static_cast<std::uint64_t>(done));
  }
  return true;
}

}  // namespace fileballoon
