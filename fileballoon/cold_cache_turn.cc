#include "fileballoon/cold_cache_turn.h"

namespace fileballoon {

GenerationTurn::Decision GenerationTurn::decide(const GenerationView& view, Clock::time_point now,
                                                Clock::duration patience) {
  if (closed_ &&
      (view.oldest != closed_->generation || view.oldest_pages == 0 || fruitless_ >= kFruitless)) {
    stuck_ = fruitless_ >= kFruitless;
    closed_.reset();
    fruitless_ = 0;
    return {Step::done, view.oldest, now};
  }
  const std::uint64_t generations = view.youngest - view.oldest + 1;
  if (!closed_ && (generations < kMostGenerations || view.oldest_pages == 0 || stuck_)) {
    stuck_ = false;
    return {Step::age, view.youngest, now};
  }
  if (!closed_) {
    closed_ = Closed{view.oldest, now};
    fruitless_ = 0;
  }
  // The kernel's reclaim may have moved the list on, or the clock may have jumped back.
  if (generations <= kLeastGenerations || now < closed_->at) {
    closed_.reset();
    return {Step::done, view.oldest, now};
  }
  if (now - closed_->at < patience) {
    const auto end_of_time = Clock::time_point::max();
    const bool for_ever = patience > end_of_time - now;
    return {Step::wait, view.oldest, for_ever ? end_of_time : closed_->at + patience};
  }
  return {Step::evict, view.oldest, now};
}

void GenerationTurn::restart() {
  closed_.reset();
  fruitless_ = 0;
  stuck_ = true;
}

void GenerationTurn::evicted(std::uint64_t pages) { fruitless_ = pages == 0 ? fruitless_ + 1 : 0; }

void EpochClock::set(std::uint64_t epoch) {
  if (!wanted_ || epoch < *wanted_) {
    served_ = epoch;
  }
  wanted_ = epoch;
}

bool EpochClock::due(Clock::time_point now) const {
  const auto at = next();
  return at && now >= *at;
}

std::optional<EpochClock::Clock::time_point> EpochClock::next() const {
  if (!wanted_ || *wanted_ == served_) {
    return std::nullopt;
  }
  return last_turn_ ? *last_turn_ + kShortest : Clock::time_point::min();
}

void EpochClock::begin(Clock::time_point now) {
  served_ = wanted();
  last_turn_ = now;
  ++turns_;
}

}  // namespace fileballoon
