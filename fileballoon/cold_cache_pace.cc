#include "fileballoon/cold_cache_pace.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fileballoon {
void CachePace::evicted(std::uint64_t pages) {
  recent_evicted_ += static_cast<double>(pages);
  took_ = took_ || pages > 0;
}

void CachePace::brake(State why, const Sample& sample) {
  state_ = why;
  ++brakes_;
  const bool expected = sample.tentative && why == State::refaulting;
  brake_end_ = sample.at + (expected ? kShortBrake : kBrake);
  if (why == State::refaulting && !expected) {
    // The pages were hot: older ones next time. A stall does not say that.
    caution_ = std::min(caution_ * 2, kMostCaution);
  }
  relax_at_ = brake_end_ + kCalm * caution_;
  step_ = kFirstStep;
  took_ = false;
  recent_evicted_ = 0;
  recent_refaulted_ = 0;
  stall_share_ = 0;
}

void CachePace::look(const Sample& sample) {
  const bool backwards =
      last_ && (sample.at < last_->at || sample.refaulted_pages < last_->refaulted_pages ||
                (sample.stalled && last_->stalled && *sample.stalled < *last_->stalled));
  if (!last_ || backwards) {
    last_ = sample;
    return;
  }
  const double seconds = std::chrono::duration<double>(sample.at - last_->at).count();
  const double keep = std::exp(-seconds / std::chrono::duration<double>(kBlame).count());
  const auto refaulted = static_cast<double>(sample.refaulted_pages - last_->refaulted_pages);
  const bool has_stall = sample.stalled && last_->stalled && seconds > 0;
  const double stalled =
      has_stall ? std::chrono::duration<double>(*sample.stalled - *last_->stalled).count() : 0;
  last_ = sample;

  if (state_ != State::free) {
    // What comes back now was taken before the brake: it has been punished already.
    if (sample.at < brake_end_) {
      return;
    }
    state_ = State::free;
    return;
  }
  // Nobody can miss more than was taken: what returns beyond that was evicted long ago, by
  // whomever, and is a working set that grows.
  recent_refaulted_ = std::min(recent_refaulted_ * keep + refaulted, recent_evicted_);
  stall_share_ = stall_share_ * keep + (seconds > 0 ? stalled / seconds : 0) * (1 - keep);
  if (recent_refaulted_ >= static_cast<double>(kRefaultNoise) &&
      recent_refaulted_ * static_cast<double>(kRefaultShare) >= recent_evicted_) {
    brake(State::refaulting, sample);
    return;
  }
  if (stall_share_ >= kStallShare && recent_evicted_ >= static_cast<double>(kRefaultNoise)) {
    brake(State::stalling, sample);
    return;
  }
  recent_evicted_ *= keep;
  if (std::exchange(took_, false)) {
    step_ = std::min(step_ * kGrowth, std::max(kLastStep, sample.cache_pages / kLastShare));
  }
  if (caution_ > 1 && sample.at >= relax_at_) {
    caution_ /= 2;
    relax_at_ = sample.at + kCalm * caution_;
  }
}

}  // namespace fileballoon
