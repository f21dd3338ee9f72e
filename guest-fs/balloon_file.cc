#include "guest-fs/balloon_file.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "guest-fs/log.h"

namespace fileballoon::guest {
namespace {

// cachestat(2), Linux 6.5; glibc 2.36 and its headers do not know it yet.
constexpr long kSysCachestat = 451;
struct CachestatRange {
  std::uint64_t offset;
  std::uint64_t length;
};
struct Cachestat {
  std::uint64_t cache;
  std::uint64_t dirty;
  std::uint64_t writeback;
  std::uint64_t evicted;
  std::uint64_t recently_evicted;
};

#ifndef POSIX_FADV_NOREUSE
#define POSIX_FADV_NOREUSE 5
#endif

/// What files that are opened from now on read ahead, in KiB.
void set_read_ahead(int fd, const char* kib) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    return;
  }
  const std::string path = "/sys/class/bdi/" + std::to_string(major(status.st_dev)) + ":" +
                           std::to_string(minor(status.st_dev)) + "/read_ahead_kb";
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid() || ::write(file.get(), kib, std::strlen(kib)) < 0) {
    log_warning("cannot set " + path + " to " + kib + " (is /sys mounted?)");
  }
}

UniqueFd open_in(int mount_fd, const char* name) {
  UniqueFd fd(::openat(mount_fd, name, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    throw std::system_error(errno, std::generic_category(),
                            std::string("open ") + name + " of the balloon's file system");
  }
  return fd;
}

/// Residency by mincore(2), for kernels before 6.5.
std::uint64_t count_by_mincore(int fd, Extent extent) {
  constexpr std::uint64_t kChunk = 4096;
  std::array<unsigned char, kChunk> flags;
  std::uint64_t sum = 0;
  while (extent.count > 0) {
    const std::uint64_t pages = std::min(extent.count, kChunk);
    void* at = ::mmap(nullptr, pages * kPageSize, PROT_READ, MAP_SHARED, fd,
                      static_cast<off_t>(extent.first.byte_offset()));
    if (at == MAP_FAILED) {
      return sum;
    }
    if (::mincore(at, pages * kPageSize, flags.data()) == 0) {
      sum += static_cast<std::uint64_t>(
          std::count_if(flags.begin(), flags.begin() + static_cast<std::ptrdiff_t>(pages),
                        [](unsigned char f) { return (f & 1U) != 0; }));
    }
    ::munmap(at, pages * kPageSize);
    extent = {extent.first + pages, extent.count - pages};
  }
  return sum;
}

}  // namespace

BalloonFile::BalloonFile(const std::string& mount_point, PageChoice choice) {
  // Opened through a detached copy of the mount, so that the agent itself does not keep anybody
  // from unmounting it (open_tree(2), Linux 5.2).
  UniqueFd mount_fd(static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, mount_point.c_str(),
                                               OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
  if (!mount_fd.valid()) {
    mount_fd.reset(::open(mount_point.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  if (!mount_fd.valid()) {
    throw std::system_error(errno, std::generic_category(), "open " + mount_point);
  }
  if (choice == PageChoice::small) {
    why_small_ = "pages=small";
  } else if (auto file = open_large_pages(open_in(mount_fd.get(), kImageFile).get())) {
    fd_ = *std::move(file);
    large_ = true;
  } else {
    why_small_ = file.error().message;
    log_info("the balloon uses 4 KiB pages: " + why_small_);
  }
  if (!large_) {
    open_small(mount_fd.get());
  }
  // Mappings of a no-reuse file do not count as use: pages are not activated when they are unmapped
  // (vma_has_recency(), Linux 6.3). Older kernels ignore it; place_for_reclaim() still deactivates.
  ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_NOREUSE);
  CachestatRange range{0, kPageSize};
  Cachestat stat{};
  has_cachestat_ = ::syscall(kSysCachestat, fd_.get(), &range, &stat, 0) == 0;
  if (!has_cachestat_) {
    log_info("no cachestat(2) in this kernel (Linux 6.5 has it); counting residency by mincore(2)");
  }
}

void BalloonFile::open_small(int mount_fd) {
  // An open file takes its read-ahead from the mount when it is opened: 1 MiB, so that one READ
  // carries kReadPages; none where pages are mapped.
  set_read_ahead(mount_fd, "1024");
  fill_fd_ = open_in(mount_fd, "balloon");
  set_read_ahead(mount_fd, "0");
  fd_ = open_in(mount_fd, "balloon");
}

void BalloonFile::prefetch(Extent extent, bool whole) const {
  if (!large_) {
    ::posix_fadvise(fill_fd_.get(), static_cast<off_t>(extent.first.byte_offset()),
                    static_cast<off_t>(extent.size().count()), POSIX_FADV_WILLNEED);
    return;
  }
  const bool aligned = extent.count == kFolioPages && extent.first.index() % kFolioPages == 0;
  if (whole && aligned && has_free_folios() && fill_folio(fd_.get(), extent.first.byte_offset())) {
    return;
  }
  // The advice reads single pages, as many at a time as the default read-ahead (128 KiB).
  constexpr std::uint64_t kAdvicePages = 32;
  for (std::uint64_t done = 0; done < extent.count; done += kAdvicePages) {
    const Extent part{extent.first + done, std::min(kAdvicePages, extent.count - done)};
    ::posix_fadvise(fd_.get(), static_cast<off_t>(part.first.byte_offset()),
                    static_cast<off_t>(part.size().count()), POSIX_FADV_WILLNEED);
  }
}

std::uint64_t BalloonFile::resident(Extent extent) const {
  if (extent.count == 0) {
    return 0;
  }
  if (!has_cachestat_) {
    return count_by_mincore(fd_.get(), extent);
  }
  CachestatRange range{extent.first.byte_offset(), extent.size().count()};
  Cachestat stat{};
  if (::syscall(kSysCachestat, fd_.get(), &range, &stat, 0) != 0) {
    return 0;
  }
  return stat.cache;
}

void BalloonFile::place_for_reclaim(Extent extent) const {
  ::posix_fadvise(fd_.get(), static_cast<off_t>(extent.first.byte_offset()),
                  static_cast<off_t>(extent.size().count()), POSIX_FADV_DONTNEED);
}

std::uint64_t BalloonFile::drop(Extent extent) const {
  const std::uint64_t before = resident(extent);
  ::posix_fadvise(fd_.get(), static_cast<off_t>(extent.first.byte_offset()),
                  static_cast<off_t>(extent.size().count()), POSIX_FADV_DONTNEED);
  const std::uint64_t after = resident(extent);
  return before > after ? before - after : 0;
}

}  // namespace fileballoon::guest
