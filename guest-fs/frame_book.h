// FrameBook: under which frames the evictable balloon pages were told to the host, a batch a
// record. The kernel moves pages that nobody pins and reclaim takes them, both without a word, so
// whoever wants to know what a page's frame was must have written it down. Frames of one batch are
// nearly contiguous, so a record is a few runs of 8 bytes and not 4 bytes a page. Pure; not
// thread-safe; owned by the inflater.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fileballoon/frame.h"
#include "guest-fs/extent.h"

namespace fileballoon::guest {

class FrameBook {
 public:
  /// No frame: the page has left the balloon. Frame 0 is never a page of a file: x86 firmware has
  /// it.
  static constexpr GuestFrame kGone{};

  struct Run {
    std::uint32_t first = 0;  // frame number: 32 bits reach 16 TiB
    std::uint32_t count = 0;
  };
  struct Record {
    Extent extent;
    std::uint64_t resident = 0;  ///< pages whose frame is not kGone
    std::vector<Run> runs;       ///< in the order of the pages
  };

  /// Pages that have become evictable balloon; kGone for those that have not.
  void add(Extent extent, std::span<const GuestFrame> frames);
  /// Frames of a record, one per page of its extent; `out` holds at least extent.count.
  void read(std::size_t record, std::span<GuestFrame> out) const;
  /// Replaces them. A record without resident pages goes; another takes its place then.
  void write(std::size_t record, std::span<const GuestFrame> frames);

  [[nodiscard]] std::size_t size() const { return records_.size(); }
  [[nodiscard]] const Record& at(std::size_t record) const { return records_.at(record); }
  /// Pages whose frame is written down.
  [[nodiscard]] std::uint64_t pages() const { return pages_; }

 private:
  static void encode(std::span<const GuestFrame> frames, Record& record);

  std::vector<Record> records_;
  std::uint64_t pages_ = 0;
};

}  // namespace fileballoon::guest
