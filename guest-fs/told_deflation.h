// ToldDeflation: the deflate mode tell-host-first, for guests whose memory something reads and
// writes that cannot take a fault (an assigned device). Every balloon page is part of the floor and
// pinned besides, so nothing but the agent gives it back, and the agent does so only after the host
// has put memory behind its frame again. It holds the pins and the requests under way; several may
// be, each for the youngest pages that no other names, and the host answers them in order.
// Single-threaded, owned by the inflater.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "fileballoon/wire.h"
#include "guest-fs/frame_lookup.h"
#include "guest-fs/locked_floor.h"
#include "guest-fs/pin_pipe.h"

namespace fileballoon::guest {

class ToldDeflation {
 public:
  using Clock = std::chrono::steady_clock;
  /// Requests without an answer: enough that the host never waits for a round trip.
  static constexpr std::size_t kMostAsked = 4;
  /// Pages of one request: 8 MiB, some milliseconds of the host's work.
  static constexpr std::uint64_t kAskPages = 2048;
  /// After the host could not back some frames (it has no memory), before it is asked again.
  static constexpr std::chrono::seconds kRetry{1};

  /// Throws std::runtime_error (no frame numbers).
  explicit ToldDeflation(LockedFloor& floor);

  /// Whether pages can be pinned: makes the pipe for the next hold() if there is none. Each takes
  /// four descriptors and 20 KiB of kernel memory.
  [[nodiscard]] bool can_hold();
  /// Pins pages of the floor from `index` to its end (at most PinPipe::kMostPages), which have just
  /// been added. 0 or an errno value: then they are locked, but may move.
  [[nodiscard]] int hold(std::uint64_t index);

  /// Whether one more request is to be made to have at most `pages` left. True: ranges() names its
  /// frames; send them, then mark_asked().
  [[nodiscard]] bool ask(std::uint64_t pages, Clock::time_point now);
  [[nodiscard]] std::span<const FrameRange> ranges() const { return ranges_; }
  void mark_asked(std::uint64_t name);
  [[nodiscard]] bool is_asking() const { return !asked_.empty(); }
  /// While requests are under way: pages that will be left once all are answered.
  [[nodiscard]] std::optional<std::uint64_t> will_be_left() const;
  /// When ask() may do something again after a failure.
  [[nodiscard]] std::optional<Clock::time_point> deadline(Clock::time_point now) const;

  struct Answer {
    bool known = false;          ///< it answers a request of ours
    std::uint64_t unbacked = 0;  ///< frames that the host could not back
    /// Lets go of the pages from here on; the caller takes them off the floor and drops them.
    std::optional<std::uint64_t> left;
  };
  [[nodiscard]] Answer answered(const wire::Populated& answer, Clock::time_point now);
  /// The session is over: requests without an answer count as not done.
  void cancel() { asked_.clear(); }

 private:
  struct Held {
    std::optional<PinPipe> pins;
    std::uint64_t index = 0;  // of its first page in the floor
  };
  struct Asked {
    std::uint64_t name = 0;
    std::uint64_t left = 0;  // pages below this stay
    std::vector<std::uint32_t> counts;
  };

  LockedFloor& floor_;
  FrameLookup lookup_;
  std::optional<PinPipe> spare_;
  std::vector<Held> held_;  // ascending by index
  std::deque<Asked> asked_;
  Clock::time_point not_before_{};
  std::vector<GuestFrame> frames_;
  std::vector<FrameRange> ranges_;
  std::uint64_t asking_left_ = 0;
};

}  // namespace fileballoon::guest
