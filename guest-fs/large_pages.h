// The balloon's large pages: mounting the computed EROFS image and opening the file in it, whose
// page cache takes folios of 2 MiB. The mount is attached nowhere: it lives as long as the returned
// descriptor, and nobody but its holder can see it. Called once, by BalloonFile.
#pragma once

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

/// Pages of one folio: the size that a page table's second level maps (x86-64).
inline constexpr std::uint64_t kFolioPages = 512;

/// `image_fd`: the hidden `.image` of the mounted balloonfs. The error names what this kernel or
/// this process lacks; the balloon then uses 4 KiB pages of the FUSE file.
[[nodiscard]] Result<UniqueFd> open_large_pages(int image_fd);

/// Fills one folio of `file_fd`, at a multiple of kFolioPages: allocates and zeroes 2 MiB in one
/// page fault. False if it could not be mapped or read.
[[nodiscard]] bool fill_folio(int file_fd, std::uint64_t byte_offset);

/// Whether the guest has free blocks of this size to spare. Asking for one when there is none would
/// start compaction and reclaim, so the caller asks for 4 KiB pages then. Reads /proc/buddyinfo;
/// false where it cannot be read.
[[nodiscard]] bool has_free_folios();

}  // namespace fileballoon::guest
