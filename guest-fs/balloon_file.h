// BalloonFile: the agent's handle on the page cache that holds the balloon. It fills, maps, counts,
// places and drops pages, and knows which system call does it. Where the kernel can, the pages are
// folios of 2 MiB of a file that is all hole (large_pages.h); otherwise they are 4 KiB pages of the
// FUSE file `balloon`. Opened once, by the inflater, after the file system is mounted.
// Single-threaded.
#pragma once

#include <cstdint>
#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/unique_fd.h"
#include "guest-fs/erofs_image.h"
#include "guest-fs/extent.h"
#include "guest-fs/large_pages.h"

namespace fileballoon::guest {

/// Size of the balloon file: constant, and more than any guest inflates in its life.
inline constexpr std::uint64_t kBalloonFileSize = ErofsImage::kFileSize;
/// Locked (floor) pages live in a part of the file of their own, so that each part stays dense.
inline constexpr FilePage kFirstLockedPage{std::uint64_t{1} << 40};

/// Hidden file of the mount: the image behind large pages (erofs_image.h).
inline constexpr const char* kImageFile = ".image";

/// What a user may choose: large pages where the kernel has them, or always small ones.
enum class PageChoice { automatic, small };

class BalloonFile {
 public:
  /// Opens the file. Throws std::system_error.
  explicit BalloonFile(const std::string& mount_point, PageChoice choice = PageChoice::automatic);

  /// To map. Map it with MADV_RANDOM: pages that the kernel read ahead by itself would be in the
  /// cache without the host knowing of them.
  [[nodiscard]] int fd() const { return fd_.get(); }

  /// What one batch fills: a folio, or what one FUSE READ carries. Batches of this size start at a
  /// multiple of it.
  [[nodiscard]] std::uint64_t batch_pages() const { return large_ ? kFolioPages : kReadPages; }
  /// Pages that are dropped together; an extent to be dropped ends at a multiple of it.
  [[nodiscard]] std::uint64_t drop_pages() const { return large_ ? kFolioPages : 1; }
  [[nodiscard]] bool has_large_pages() const { return large_; }
  /// Why not, for the log and `stats`; empty where it has them.
  [[nodiscard]] const std::string& why_small() const { return why_small_; }

  /// Fills `extent`. Small pages of the FUSE file are read ahead: this returns while the file
  /// system is still answering. `whole`: as one folio where the guest has one free.
  void prefetch(Extent extent, bool whole) const;
  /// Balloon pages in the page cache, counted by the kernel.
  [[nodiscard]] std::uint64_t resident(Extent extent) const;
  /// Moves unmapped, still pinned pages to where reclaim looks first: POSIX_FADV_DONTNEED cannot
  /// evict a page somebody holds, so it puts it at the tail of the inactive list (oldest MGLRU
  /// generation) instead.
  void place_for_reclaim(Extent extent) const;
  /// Drops what nobody holds; returns how many pages went.
  std::uint64_t drop(Extent extent) const;

 private:
  /// What one FUSE READ carries at most (Linux 4.20 to 6.18).
  static constexpr std::uint64_t kReadPages = 256;

  void open_small(int mount_fd);

  UniqueFd fd_;
  UniqueFd fill_fd_;  // with read-ahead
  bool large_ = false;
  std::string why_small_;
  bool has_cachestat_ = true;
};

}  // namespace fileballoon::guest
