// DeflateReports: finds the balloon pages that have left, by reclaim or because the target fell,
// and names their frames for DEFLATED where the mount asks for that (deflate=batched). In any mode
// it is what takes such pages off the FrameBook, whose memory would grow otherwise. A frame that
// has become balloon again meanwhile is not named, so what the host hears is true when it is sent.
// Single-threaded, owned by the inflater.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fileballoon/deflate_mode.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/frame_book.h"

namespace fileballoon::guest {

class DeflateReports {
 public:
  using Clock = std::chrono::steady_clock;
  /// Default of deflate_every=: a host that plans by the second learns nothing from more.
  static constexpr std::chrono::milliseconds kEvery{1000};
  /// Losses that make a walk worth while where nobody waits for it (64 MiB: 16,384 pages, at most
  /// 128 KiB of stale records).
  static constexpr std::uint64_t kSilentLosses = 16384;
  /// Records looked at in one piece, some milliseconds at most.
  static constexpr std::size_t kPieceRecords = 256;

  /// `every`: least time between two walks of the book.
  DeflateReports(const BalloonFile& file, FrameBook& book, DeflateMode mode,
                 std::chrono::milliseconds every);
  ~DeflateReports();
  DeflateReports(const DeflateReports&) = delete;
  DeflateReports& operator=(const DeflateReports&) = delete;

  /// Pages that have left the balloon since the start, whoever took them.
  void note_losses(std::uint64_t pages) { losses_ = pages; }
  /// Looks at the next piece of the book if it is time.
  void look(Clock::time_point now);
  /// When look() has something to do; nothing while no page has left.
  [[nodiscard]] std::optional<Clock::time_point> deadline() const;

  /// Frames to be named, at most `most` ranges; empty while there are none (always so in silent
  /// mode). `still_balloon`: frames that are balloon beside those of the book.
  [[nodiscard]] std::vector<FrameRange> take(std::span<const GuestFrame> still_balloon,
                                             std::size_t most);
  [[nodiscard]] bool has_some() const { return !gone_.empty() && left_ == 0; }
  /// The session is over: the next host never knew of them.
  void forget() { gone_.clear(); }

 private:
  void look_at(std::size_t record);
  void forget_known(std::span<const GuestFrame> still_balloon);

  const BalloonFile& file_;
  FrameBook& book_;
  bool tells_;
  Clock::duration every_;
  void* window_ = nullptr;

  std::uint64_t losses_ = 0;
  std::uint64_t walked_losses_ = 0;  // losses when the last walk began
  std::size_t left_ = 0;             // records below this are to be looked at
  Clock::time_point next_walk_{};
  Clock::time_point next_piece_{};
  std::vector<GuestFrame> frames_;
  std::vector<GuestFrame> gone_;
};

}  // namespace fileballoon::guest
