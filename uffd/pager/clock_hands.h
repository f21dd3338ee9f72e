// ClockHands: in which order a pager that needs room looks at memory and takes of it. Two hands go
// round: the first looks at a piece (2 MiB; what was in use is unmapped), the second comes to it a
// while later and takes what nobody has used since. The first is ahead only so far that its pieces
// should hold what is wanted, so that making a little room costs looks in proportion to it and not
// to the size of the VM. Pure: time comes in as a value. One thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>

namespace fileballoon {

class ClockHands {
 public:
  using Clock = std::chrono::steady_clock;
  /// What a page has to be used again: at first, and where much of what was taken comes back at
  /// once. Less than faults wait for room (FillLimit::kLongestHold), or room would come too late.
  static constexpr std::chrono::milliseconds kLeastChance{300};
  static constexpr std::chrono::milliseconds kMostChance{800};
  /// The first hand is ahead by this many pieces at least.
  static constexpr std::uint64_t kLeastLead = 8;

  /// `pieces`: of the whole round; `piece_pages`: pages in one.
  ClockHands(std::uint64_t pieces, std::uint64_t piece_pages)
      : pieces_(std::max<std::uint64_t>(pieces, 1)), piece_pages_(piece_pages) {}

  enum class Move {
    look,  ///< at the next piece; looked() follows
    take,  ///< of the piece that take() names; took() follows
    wait,  ///< until pages have had their chance
  };
  struct Looked {
    std::uint64_t piece = 0;
    Clock::time_point at{};
  };
  [[nodiscard]] Move next(std::uint64_t wanted, Clock::time_point now) const {
    if (!looked_.empty() && now - looked_.front().at >= chance_) {
      return Move::take;
    }
    return looked_.size() < lead(wanted) ? Move::look : Move::wait;
  }
  void looked(std::uint64_t piece, Clock::time_point now) { looked_.push_back({piece, now}); }
  [[nodiscard]] Looked take(Clock::time_point now) {
    const Looked looked = looked_.front();
    looked_.pop_front();
    took_at_ = now;
    return looked;
  }
  /// Less than it gives was wanted.
  void put_back(Looked looked) { looked_.push_front(looked); }
  /// Faults wait, and so do pages for their chance. Where pages have been taken lately the guest is
  /// faster than the hands: the first one shall be ahead farther, until that has not been for a
  /// while.
  void starved(Clock::time_point now) {
    if (now - took_at_ < 2 * chance_ && now - starved_at_ >= chance_) {
      haste_ = std::min(2 * haste_, pieces_);
      starved_at_ = now;
    } else if (now - starved_at_ > kCalm) {
      haste_ = 1;
    }
  }
  /// Of that piece so many pages were not in use.
  void took(std::uint64_t pages) {
    yield_ += (static_cast<double>(pages) / static_cast<double>(piece_pages_) - yield_) / 16;
    barren_ = pages > 0 ? 0 : barren_ + 1;
  }
  /// Of `out` pages that went since the last call, `back` were touched since: whether pages get
  /// enough of a chance.
  void came_back(std::uint64_t back, std::uint64_t out) {
    chance_ = back * 4 > out ? std::min<Clock::duration>(2 * chance_, kMostChance)
                             : std::max<Clock::duration>(chance_ * 3 / 4, kLeastChance);
  }
  /// Two rounds and nothing that was not in use; begins to count anew.
  [[nodiscard]] bool all_in_use() {
    if (barren_ < 2 * pieces_) {
      return false;
    }
    barren_ = 0;
    return true;
  }
  [[nodiscard]] Clock::duration chance() const { return chance_; }
  /// Pieces between the hands, at most: twice what should be enough.
  [[nodiscard]] std::uint64_t lead(std::uint64_t wanted) const {
    const double yield = std::max(yield_, kLeastYield) * static_cast<double>(piece_pages_);
    const auto enough = static_cast<std::uint64_t>(2 * static_cast<double>(wanted) / yield);
    return std::min(std::max(enough, kLeastLead) * haste_, pieces_);
  }

 private:
  static constexpr double kLeastYield = 1.0 / 32;
  static constexpr std::chrono::seconds kCalm{5};
  std::uint64_t pieces_;
  std::uint64_t piece_pages_;
  std::deque<Looked> looked_;  // by the first hand and not yet by the second
  double yield_ = 0.5;         // pages not in use, of those in a piece, lately
  std::uint64_t barren_ = 0;   // pieces, one after the other, with none
  Clock::duration chance_ = kLeastChance;
  std::uint64_t haste_ = 1;
  Clock::time_point took_at_{};
  Clock::time_point starved_at_{};
};

}  // namespace fileballoon
