#include "uffd/pager/access_tracker.h"

#include <poll.h>
#include <sched.h>
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

std::string remedy(int error) {
  switch (error) {
    case EPERM:
      return "; run the fault keeper as root, or with CAP_SYS_NICE";
    case EINVAL:
      return "; guest RAM is locked: start QEMU without -overcommit mem-lock=on";
    default:
      return {};
  }
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
  AccessTracker tracker(ram, std::move(pidfd), std::move(*pagemap), std::move(ages), method);
  for (const WatchedRam::Region& region : ram.regions()) {
    // Each region: one alone may be locked.
    if (const int error = tracker.set_trap(region, {region.where.start, Bytes(kPageSize)})) {
      return Error{"paging cannot see which pages of pid " + std::to_string(pid) +
                   " are in use (process_madvise: " + std::strerror(error) + ")" + remedy(error)};
    }
  }
  return tracker;
}

AccessTracker::Look AccessTracker::look() {
  Look result;
  // Everything is a look older, what was used is young again. (An object mapped twice ages by the
  // first of its places and is made young by any.)
  for (std::uint32_t object = 0; object < ages_.size(); ++object) {
    for (std::uint64_t page = 0; page < ram_->frames(object).pages(); ++page) {
      ages_[object]->grow_older(page);
    }
  }
  for (const WatchedRam::Region& region : ram_->regions()) {
    look_at_place(region, region.where, Traps::set, result);
    if (result.error != 0) {
      break;
    }
  }
  return result;
}

AccessTracker::Look AccessTracker::look_at(std::uint32_t object, HostRange range) {
  return look_at(object, range, Traps::set);
}

AccessTracker::Look AccessTracker::look_again_at(std::uint32_t object, HostRange range) {
  return look_at(object, range, Traps::left);
}

AccessTracker::Look AccessTracker::look_at(std::uint32_t object, HostRange range, Traps traps) {
  Look result;
  const std::uint64_t first = range.start.bytes() / kPageSize;
  for (std::uint64_t page = first; page < first + range.pages(); ++page) {
    ages_[object]->grow_older(page);
  }
  ram_->for_each_place(object, range, [&](const WatchedRam::Region& region, AddressRange where) {
    if (result.error == 0) {
      look_at_place(region, where, traps, result);
    }
  });
  return result;
}

void AccessTracker::look_at_place(const WatchedRam::Region& region, AddressRange where, Traps traps,
                                  Look& result) {
  const auto want =
      method_ == AccessMethod::unmap ? Pagemap::Want::present : Pagemap::Want::writable;
  seen_.clear();
  errno = 0;
  if (!pagemap_.scan(where, want, [&](AddressRange run) { seen_.push_back(run); })) {
    result.error = gone() ? ESRCH : errno != 0 ? errno : EIO;
    return;
  }
  for (const AddressRange& run : seen_) {
    const std::uint64_t first = region.page_of(run.start);
    for (std::uint64_t i = 0; i < run.size.whole_pages(); ++i) {
      ages_[region.object]->set(first + i, 0);
    }
    result.accessed += run.size.whole_pages();
  }
  if (traps == Traps::left) {
    return;
  }
  // A call costs as much as a hundred pages, and the trap does nothing to pages that were not
  // touched: gaps are taken along.
  for (std::size_t i = 0; i < seen_.size();) {
    AddressRange span = seen_[i];
    for (++i; i < seen_.size() && seen_[i].start - span.end() <= kGap.count(); ++i) {
      span.size = Bytes(seen_[i].end() - span.start);
    }
    if (const int error = set_trap(region, span)) {
      result.error = gone() ? ESRCH : error;
      return;
    }
  }
}

// A process that exits shows itself as many errors before it is gone.
bool AccessTracker::gone() const {
  pollfd exited{pidfd_.get(), POLLIN, 0};
  return ::poll(&exited, 1, 0) == 1;
}

// 0, or errno.
int AccessTracker::set_trap(const WatchedRam::Region& region, AddressRange where) {
  if (method_ == AccessMethod::write_protect) {
    UffdOutcome outcome = ram_->shard_of(region).protect(where);
    // EAGAIN: an event waits to be read by the engine's reader, which takes microseconds.
    for (int i = 0; outcome.status == UffdStatus::again && i < 1000; ++i) {
      ::sched_yield();
      outcome = ram_->shard_of(region).protect(where);
    }
    return outcome.status == UffdStatus::done ? 0 : EIO;
  }
  // Up to a piece a call: the VMM's mmap lock is held for less than a millisecond.
  while (where.size.count() > 0) {
    const std::uint64_t length = std::min(where.size.count(), RangeLocks::kPiece.count());
    const iovec range{reinterpret_cast<void*>(where.start), length};
    const long done = ::syscall(SYS_process_madvise, pidfd_.get(), &range, 1, MADV_PAGEOUT, 0);
    if (done < 0 && errno == EINTR) {
      continue;
    }
    if (done <= 0) {
      return done < 0 ? errno : EIO;
    }
    where.start += static_cast<std::uint64_t>(done);
    where.size = where.size - Bytes(static_cast<std::uint64_t>(done));
  }
  return 0;
}

}  // namespace fileballoon
