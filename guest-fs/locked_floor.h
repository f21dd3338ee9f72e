// LockedFloor: the mandatory part of the balloon. Its pages stay mapped and mlock'ed, so reclaim
// never takes them; locking does not stop compaction from moving them, so it remembers the frame of
// each (4 bytes a page), by which MovedPages finds those that moved. Its pages are single ones, in
// a part of the file that never holds folios (Pipeline asks for those of the evictable part only):
// a floor may be cut at any page, and no folio is ever locked in part, which would keep all 2 MiB
// of it. Single-threaded, owned by the inflater.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fileballoon/frame.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"

namespace fileballoon::guest {

class LockedFloor {
 public:
  /// Stands for the frame of a page that must be reported again.
  static constexpr GuestFrame kUnknown{0xffffffff};

  /// Reserves address space for a floor of up to `most`; takes no memory yet. Throws
  /// std::system_error.
  LockedFloor(const BalloonFile& file, Bytes most);
  ~LockedFloor();
  LockedFloor(const LockedFloor&) = delete;
  LockedFloor& operator=(const LockedFloor&) = delete;

  [[nodiscard]] std::uint64_t pages() const { return frames_.size(); }
  /// Most pages it can ever hold.
  [[nodiscard]] std::uint64_t capacity() const { return capacity_; }

  /// Maps and locks `extent`, whose pages are cached and pinned right now and stand behind
  /// `frames`. 0 or an errno value (ENOMEM: the limit of lockable memory), with nothing changed.
  [[nodiscard]] int add(Extent extent, std::span<const GuestFrame> frames);
  /// Unlocks the youngest pages until at most `pages` are left; what was unlocked is appended to
  /// `released` and is evictable from then on.
  struct Released {
    Extent extent;
    std::vector<GuestFrame> frames;  ///< one per page
  };
  void shrink_to(std::uint64_t pages, std::vector<Released>& released);

  [[nodiscard]] const void* address(std::uint64_t index) const {
    return static_cast<const char*>(base_) + index * kPageSize;
  }
  /// Where page `index` was when it was last reported.
  [[nodiscard]] GuestFrame frame(std::uint64_t index) const {
    return GuestFrame(frames_.at(index));
  }
  /// Changes whenever a page number begins to mean another page.
  [[nodiscard]] std::uint64_t version() const { return version_; }
  /// Records where a page that moved was seen and reported.
  void set_frame(std::uint64_t index, GuestFrame frame);

 private:
  struct Piece {
    Extent extent;
    std::uint64_t index = 0;  // of its first page in the floor
  };

  const BalloonFile& file_;
  std::uint64_t capacity_ = 0;
  void* base_ = nullptr;
  std::vector<Piece> pieces_;          // ascending by index
  std::vector<std::uint32_t> frames_;  // frame numbers: 32 bits reach 16 TiB
  std::uint64_t version_ = 0;
};

}  // namespace fileballoon::guest
