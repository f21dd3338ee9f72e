// LockedFloor: the mandatory part of the balloon. Its pages stay mapped and mlock'ed, so reclaim
// never takes them; locking does not stop compaction from moving them, so it remembers the frame of
// each (4 bytes a page) and finds those that moved. Single-threaded, owned by the inflater.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"
#include "guest-fs/frame_lookup.h"

namespace fileballoon::guest {

class LockedFloor {
 public:
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
  void shrink_to(std::uint64_t pages, std::vector<Extent>& released);

  /// Addresses of pages that are no longer where they were reported, at most `most`. Each call
  /// looks at the next kLooksPerCall pages, so a large floor costs no burst.
  static constexpr std::uint64_t kLooksPerCall = 8192;
  struct Moved {
    std::uint64_t index = 0;  ///< page of the floor
  };
  void find_moved(FrameLookup& lookup, std::size_t most, std::vector<Moved>& out);
  [[nodiscard]] const void* address(std::uint64_t index) const {
    return static_cast<const char*>(base_) + index * kPageSize;
  }
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
  std::uint64_t look_next_ = 0;
};

}  // namespace fileballoon::guest
