// Pipeline: batches of balloon pages on their way to the host. Each goes through fill (the file
// system answers a read-ahead), pin, look (frame numbers), tell (a report), and, once the host has
// acknowledged that very batch, release. A page is pinned from before its frame is looked at until
// after the acknowledgement, so the frame that was told is the frame that was discarded. The number
// of pages that were filled and not acknowledged is bounded (kMostInFlight), because until then
// they cost the host memory. Single-threaded, owned by the inflater.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "fileballoon/wire.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"
#include "guest-fs/frame_lookup.h"
#include "guest-fs/pin_pipe.h"

namespace fileballoon::guest {

/// One batch on its way.
struct Batch {
  enum class State { idle, filling, told, acked };
  State state = State::idle;
  Extent extent;
  bool for_floor = false;
  std::uint64_t name = 0;  // of its report
  std::array<GuestFrame, PinPipe::kCapacity> frames;
  std::vector<FrameRange> ranges;
  std::bitset<PinPipe::kCapacity> rejected;  // pages the host did not discard
  PinPipe pins;
};

class Pipeline {
 public:
  static constexpr std::uint64_t kBatchPages = PinPipe::kCapacity;
  /// Read-aheads under way at once: one that the file system answers while the next is set up.
  static constexpr std::size_t kMostFilling = 2;
  /// Reports without an answer. With the read-aheads, 8 MiB of host memory at most.
  static constexpr std::size_t kMostTold = 6;
  static constexpr std::uint64_t kMostInFlight = (kMostFilling + kMostTold) * kBatchPages;
  /// Acknowledged pages are placed in groups: POSIX_FADV_DONTNEED drains the LRU caches of all CPUs
  /// once a call. While they wait they are pinned, and cost the host nothing.
  static constexpr std::uint64_t kPlaceGroup = 2048;
  static constexpr std::size_t kSlots = kMostFilling + kMostTold + kPlaceGroup / kBatchPages;

  /// Throws std::system_error.
  Pipeline(const BalloonFile& file, FrameLookup& lookup);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  [[nodiscard]] bool can_fill() const;
  /// Starts filling the next batch; only when can_fill(). `extent` holds at most kBatchPages.
  void fill(Extent extent, bool for_floor);

  /// The oldest batch that waits to be told, if one more report may be out.
  [[nodiscard]] Batch* next_to_tell();
  /// Pins and looks. 0 or an errno value; on error the batch is dropped and idle.
  [[nodiscard]] int pin_and_look(Batch& batch);
  void mark_told(Batch& batch, std::uint64_t name);

  /// The batch of that report; null for an answer to nothing.
  [[nodiscard]] Batch* find_told(std::uint64_t name);
  void mark_acked(Batch& batch);

  /// Places and lets go of acknowledged batches once a group is together, or now with `all`.
  /// Appends what became balloon to `placed` and what was rejected, and is dropped, to nothing;
  /// returns pages dropped.
  std::uint64_t release_acked(bool all, std::vector<Extent>& placed);
  /// Lets go of one batch that is not to be placed (it is locked by now).
  void release(Batch& batch);

  /// Forgets and drops every batch that is not acknowledged; returns its pages.
  std::uint64_t cancel();

  /// Filled or told, not acknowledged.
  [[nodiscard]] std::uint64_t in_flight_pages() const;
  /// All pages held, acknowledged ones included.
  [[nodiscard]] std::uint64_t held_pages() const;
  [[nodiscard]] std::uint64_t floor_pages() const;
  [[nodiscard]] bool is_idle() const;

 private:
  [[nodiscard]] std::size_t count(Batch::State state) const;
  [[nodiscard]] std::uint64_t pages(Batch::State state) const;
  void drop(Batch& batch);
  [[nodiscard]] std::byte* map_window(Extent extent);
  void unmap_window();

  const BalloonFile& file_;
  FrameLookup& lookup_;
  std::vector<std::unique_ptr<Batch>> slots_;
  std::vector<GuestFrame> sorted_;
  void* window_ = nullptr;  // address space of one batch
  bool window_mapped_ = false;
};

}  // namespace fileballoon::guest
