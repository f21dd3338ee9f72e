// MovedPages: finds balloon pages that the kernel has moved to other frames, and has them reported
// anew. Compaction moves every page that nobody pins, mlock'ed ones too (6,094 of 16,384, Linux
// 6.12); the copy gives the new frame memory on the host, which would cost the host a page that
// everybody believes to be absent. A pass over the balloon begins only after the kernel's count of
// migrations (pgmigrate_success) has moved, and takes at most one part in kPassShare of a CPU, so a
// guest in which nothing moves pays nothing. Moved pages are pinned, looked at again, told, and let
// go after the acknowledgement, as in every batch. Single-threaded, owned by the inflater.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fileballoon/wire.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/frame_book.h"
#include "guest-fs/frame_lookup.h"
#include "guest-fs/locked_floor.h"
#include "guest-fs/pin_pipe.h"

namespace fileballoon::guest {

class MovedPages {
 public:
  using Clock = std::chrono::steady_clock;
  /// A piece of a pass that took 1 ms is followed by at least 50 ms without one: 2 % of a CPU, and
  /// a balloon of 1 GiB is looked through in about 10 s where looking costs 0.8 us a page.
  static constexpr int kPassShare = 50;
  static constexpr std::chrono::milliseconds kLeastPause{20};
  /// Most pages looked at in one piece: the channel must not wait longer than some milliseconds.
  static constexpr std::uint64_t kPiecePages = 8192;

  /// Throws std::system_error or std::runtime_error (no frame numbers, no pipe).
  MovedPages(const BalloonFile& file, LockedFloor& floor, FrameBook& book);
  ~MovedPages();
  MovedPages(const MovedPages&) = delete;
  MovedPages& operator=(const MovedPages&) = delete;

  /// The kernel's pgmigrate_success. A change starts a pass (again, if one is running).
  void note_migrations(std::uint64_t migrations);
  /// Looks at the next piece if it is time. True: ranges() must be reported, then mark_told().
  [[nodiscard]] bool look(Clock::time_point now);
  [[nodiscard]] std::span<const FrameRange> ranges() const { return ranges_; }
  void mark_told(std::uint64_t report) { told_ = report; }
  [[nodiscard]] bool is_told(std::uint64_t report) const { return told_ == report; }

  [[nodiscard]] bool is_waiting() const { return told_.has_value(); }

  struct Told {
    std::uint64_t moved = 0;    ///< pages that had moved
    wire::RangeOutcome became;  ///< what the host did with their new frames, in sum
  };
  /// The answer to that report: writes down where the pages are, and lets go of them.
  [[nodiscard]] Told acknowledge(const wire::Ack& ack);
  /// The session is over: what was told is not known to be done, so a new pass begins.
  void cancel();
  /// Starts a pass without a migration.
  void begin_anew() { pass_wanted_ = true; }

  /// When look() may have something to do; nothing while no pass runs.
  [[nodiscard]] std::optional<Clock::time_point> deadline() const;

 private:
  struct Moved {
    std::uint64_t page = 0;  // in the piece
    GuestFrame frame;        // where it is now
  };

  [[nodiscard]] std::uint64_t look_at_floor();
  [[nodiscard]] std::uint64_t look_at_record();
  [[nodiscard]] std::byte* map_window(Extent extent);
  void close_window();
  void find_moved(const std::byte* at, std::uint64_t pages);
  void begin_pass();

  const BalloonFile& file_;
  LockedFloor& floor_;
  FrameBook& book_;
  FrameLookup lookup_;
  PinPipe pins_;
  void* window_ = nullptr;

  std::uint64_t migrations_ = 0;
  bool pass_wanted_ = false;
  std::uint64_t floor_next_ = 0;  // pages of the floor from here on are to be looked at
  std::size_t book_left_ = 0;     // records below this are
  Clock::time_point next_look_{};

  // The piece at hand: what was written down, what is seen, what has moved.
  std::vector<GuestFrame> recorded_;
  std::vector<GuestFrame> seen_;
  std::vector<Moved> moved_;
  std::vector<GuestFrame> sorted_;
  std::vector<FrameRange> ranges_;
  bool in_floor_ = false;
  std::uint64_t piece_ = 0;  // first page of the floor, or first file page of the record
  std::uint64_t floor_version_ = 0;
  std::optional<std::uint64_t> told_;
};

}  // namespace fileballoon::guest
