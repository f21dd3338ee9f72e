// Pipeline: batches of balloon pages on their way to the host. Each is filled (asked for by
// ReadAhead, answered by the file system), pinned, looked at, told (a report), and, once the host
// has acknowledged that very batch, released. A page is pinned from before its frame is looked at
// until after the acknowledgement, so the frame that was told is the frame that was discarded. The
// number of pages that were filled and not acknowledged is bounded, because until
// then they cost the host memory. Called by the inflater's loop alone.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"
#include "guest-fs/frame_lookup.h"
#include "guest-fs/page_window.h"
#include "guest-fs/pin_pipe.h"
#include "guest-fs/read_ahead.h"

namespace fileballoon::guest {

/// One batch on its way.
struct Batch {
  enum class State {
    idle,
    asked,   ///< with ReadAhead
    filled,  ///< its pages are in the cache, answered or about to be
    told,
  };
  State state = State::idle;
  Extent extent;
  bool for_floor = false;
  std::uint64_t order = 0;  ///< in which batches were started
  std::uint64_t name = 0;   ///< of its report
  std::array<GuestFrame, PinPipe::kMostPages> frames;
  std::vector<FrameRange> ranges;
  std::bitset<PinPipe::kMostPages> rejected;  ///< pages the host did not discard
  PinPipe pins;

  explicit Batch(std::uint64_t pages) : pins(pages) {}
};

class Pipeline {
 public:
  /// Pages that are filled before their report (some being allocated, some being answered, some to
  /// pin next), and reported without an answer: together 8 MiB of host memory at most.
  static constexpr std::uint64_t kMostFillingPages = 1024;
  static constexpr std::uint64_t kMostToldPages = 1024;

  /// Throws std::system_error or std::runtime_error (no frame numbers).
  explicit Pipeline(const BalloonFile& file);
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// Most pages of one batch.
  [[nodiscard]] std::uint64_t batch_pages() const { return batch_pages_; }
  [[nodiscard]] const ReadAhead& read_ahead() const { return read_ahead_; }

  [[nodiscard]] bool can_fill() const;
  /// Starts the next batch; only when can_fill(). `extent` holds at most batch_pages().
  void fill(Extent extent, bool for_floor);
  /// The same with small pages, from the list of that CPU if one is named.
  void fill_small(Extent extent, std::optional<unsigned> cpu);
  /// Notes what ReadAhead has done.
  void collect();

  /// The oldest batch that is filled, if one more report may be out.
  [[nodiscard]] Batch* next_to_tell();
  /// Pins and looks. 0 or an errno value; on error the batch is dropped and idle.
  [[nodiscard]] int pin_and_look(Batch& batch);
  void mark_told(Batch& batch, std::uint64_t name);

  /// The batch of that report; null for an answer to nothing.
  [[nodiscard]] Batch* find_told(std::uint64_t name);
  /// Lets go of an acknowledged batch. Pages that the host rejected are dropped; their number.
  std::uint64_t release(Batch& batch);

  /// Forgets and drops every batch; returns its pages.
  std::uint64_t cancel();

  /// Asked for, filled or told, not acknowledged.
  [[nodiscard]] std::uint64_t in_flight_pages() const;
  [[nodiscard]] std::uint64_t floor_pages() const;

 private:
  [[nodiscard]] std::size_t count(Batch::State state) const;
  [[nodiscard]] Batch* oldest(Batch::State state);
  void note_filled(std::size_t count);
  void begin(Extent extent, bool for_floor);
  void drop(Batch& batch);
  const BalloonFile& file_;
  FrameLookup lookup_;
  ReadAhead read_ahead_;
  std::vector<std::unique_ptr<Batch>> slots_;
  std::vector<GuestFrame> sorted_;
  std::uint64_t order_ = 0;
  std::uint64_t batch_pages_;
  std::size_t most_filling_;
  std::size_t most_told_;
  PageWindow window_;
};

}  // namespace fileballoon::guest
