// PageWindow: address space for one batch of balloon pages. Mapping them is how they are pinned
// (PinPipe) and looked at (FrameLookup), and a mapping that stays would keep them from looking
// unused; so the window shows one extent for a moment. Single-threaded.
#pragma once

#include <cstdint>

#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"

namespace fileballoon::guest {

class PageWindow {
 public:
  /// For extents of up to `pages` pages. Throws std::system_error.
  PageWindow(const BalloonFile& file, std::uint64_t pages);
  ~PageWindow();
  PageWindow(const PageWindow&) = delete;
  PageWindow& operator=(const PageWindow&) = delete;

  /// Maps `extent`, which replaces what was shown. False: no memory for the mapping.
  [[nodiscard]] bool show(Extent extent);
  /// Where it is mapped: at a multiple of 2 MiB, so that a folio of that size is one entry of the
  /// page table.
  [[nodiscard]] void* address() const { return base_; }
  /// Faults every page in. 0 or an errno value (EFAULT: the file could not be read).
  [[nodiscard]] int populate();
  void hide();

 private:
  const BalloonFile& file_;
  void* reserved_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  void* base_ = nullptr;
  std::uint64_t shown_pages_ = 0;
};

}  // namespace fileballoon::guest
