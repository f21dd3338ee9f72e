// BalloonFile: the agent's handle on the balloon file's page cache. It fills, maps, counts, places
// and drops pages, and knows which system call does it. Opened once, by the inflater, after the
// file system is mounted. Single-threaded.
#pragma once

#include <cstdint>
#include <string>

#include "fileballoon/bytes.h"
#include "guest-fs/extent.h"
#include "guest-fs/unique_fd.h"

namespace fileballoon::guest {

/// Size of the balloon file: constant, and more than any guest inflates in its life.
inline constexpr std::uint64_t kBalloonFileSize = std::uint64_t{1} << 60;
/// Locked (floor) pages live in a part of the file of their own, so that each part stays dense.
inline constexpr FilePage kFirstLockedPage{std::uint64_t{1} << 40};

class BalloonFile {
 public:
  /// Opens `mount_point`/balloon and raises the mount's read-ahead so that one READ carries 1 MiB.
  /// Throws std::system_error.
  explicit BalloonFile(const std::string& mount_point);

  /// To map and to splice from: without read-ahead, so that a page which is missing is read alone.
  /// Pages that the kernel read by itself would be in the cache without the host knowing of them.
  [[nodiscard]] int fd() const { return fd_.get(); }

  /// Starts filling `extent` by read-ahead and returns while the file system is still answering.
  void prefetch(Extent extent) const;
  /// Balloon pages in the page cache, counted by the kernel.
  [[nodiscard]] std::uint64_t resident(Extent extent) const;
  /// Moves unmapped, still pinned pages to where reclaim looks first: POSIX_FADV_DONTNEED cannot
  /// evict a page somebody holds, so it puts it at the tail of the inactive list (oldest MGLRU
  /// generation) instead.
  void place_for_reclaim(Extent extent) const;
  /// Drops what nobody holds; returns how many pages went.
  std::uint64_t drop(Extent extent) const;

 private:
  UniqueFd fd_;
  UniqueFd fill_fd_;  // with read-ahead
  bool has_cachestat_ = true;
};

}  // namespace fileballoon::guest
