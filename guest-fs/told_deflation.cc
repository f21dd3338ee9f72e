#include "guest-fs/told_deflation.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace fileballoon::guest {

ToldDeflation::ToldDeflation(LockedFloor& floor)
    : floor_(floor), lookup_(FrameLookup::open().value()) {}

bool ToldDeflation::can_hold() {
  if (!spare_) {
    try {
      spare_.emplace(PinPipe::kMostPages);
    } catch (const std::system_error&) {
      return false;
    }
  }
  return true;
}

int ToldDeflation::hold(std::uint64_t index) {
  const bool can = can_hold();
  held_.push_back({std::exchange(spare_, std::nullopt), index});
  return can ? held_.back().pins->pin(floor_.address(index), floor_.pages() - index) : EMFILE;
}

std::optional<std::uint64_t> ToldDeflation::will_be_left() const {
  return asked_.empty() ? std::nullopt : std::optional(asked_.back().left);
}

std::optional<ToldDeflation::Clock::time_point> ToldDeflation::deadline(
    Clock::time_point now) const {
  return not_before_ > now ? std::optional(not_before_) : std::nullopt;
}

bool ToldDeflation::ask(std::uint64_t pages, Clock::time_point now) {
  const std::uint64_t end = will_be_left().value_or(floor_.pages());
  if (end <= pages || asked_.size() >= kMostAsked || now < not_before_) {
    return false;
  }
  // Whole pipes: a pipe lets go of its oldest pages first. What is too much is taken again.
  auto from = std::partition_point(held_.begin(), held_.end(),
                                   [&](const Held& one) { return one.index < end; });
  asking_left_ = end;
  while (from != held_.begin() && asking_left_ > pages && end - asking_left_ < kAskPages) {
    --from;
    asking_left_ = from->index;
  }
  if (asking_left_ == end) {
    return false;
  }
  frames_.resize(end - asking_left_);
  for (std::uint64_t done = 0; done < frames_.size();) {
    const std::uint64_t count =
        std::min<std::uint64_t>(FrameLookup::kMostPages, frames_.size() - done);
    if (lookup_.look(floor_.address(asking_left_ + done),
                     std::span(frames_).subspan(done, count)) != FrameLookup::Look::all) {
      not_before_ = now + kRetry;
      return false;
    }
    done += count;
  }
  coalesce(frames_, ranges_);
  return true;
}

void ToldDeflation::mark_asked(std::uint64_t name) {
  Asked asked{name, asking_left_, {}};
  for (const FrameRange& range : ranges_) {
    asked.counts.push_back(static_cast<std::uint32_t>(range.count));
  }
  asked_.push_back(std::move(asked));
}

ToldDeflation::Answer ToldDeflation::answered(const wire::Populated& answer,
                                              Clock::time_point now) {
  Answer result;
  if (asked_.empty() || asked_.front().name != answer.request ||
      asked_.front().counts.size() != answer.backed.size()) {
    return result;
  }
  result.known = true;
  const Asked asked = std::move(asked_.front());
  asked_.pop_front();
  for (std::size_t i = 0; i < asked.counts.size(); ++i) {
    result.unbacked += asked.counts[i] - std::min(asked.counts[i], answer.backed[i]);
  }
  if (result.unbacked > 0) {
    // Those asked for after these cannot go before them: they are asked for again, too.
    asked_.clear();
    not_before_ = now + kRetry;
    return result;
  }
  while (!held_.empty() && held_.back().index >= asked.left) {
    if (held_.back().pins) {
      held_.back().pins->release();
    }
    held_.pop_back();
  }
  result.left = asked.left;
  return result;
}

}  // namespace fileballoon::guest
