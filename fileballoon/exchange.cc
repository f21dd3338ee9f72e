#include "fileballoon/exchange.h"

#include <algorithm>

namespace fileballoon {

bool Exchange::due(bool at_reserve, Clock::time_point now) {
  if (!at_reserve) {
    still_since_.reset();
    return false;
  }
  still_since_ = still_since_.value_or(now);
  return used_ >= kLeast && now - *still_since_ >= kStill && now >= not_before_;
}

void Exchange::begin(const Free& free, Clock::time_point now) {
  begun_ = now;
  // Lists of CPUs come first: from there memory is handed out before any block is split.
  parts_.assign(1, Part{std::min(free.in_small_blocks, used_), std::nullopt});
  std::uint64_t left = used_;
  for (unsigned cpu = 0; cpu < free.in_cpu_lists.size(); ++cpu) {
    const std::uint64_t pages = std::min(free.in_cpu_lists[cpu], left);
    left -= pages;
    parts_.push_back({pages, cpu});
  }
  parts_.front().pages = std::min(parts_.front().pages, left);
  used_ = 0;
}

std::optional<Exchange::Part> Exchange::next(std::uint64_t most, Clock::time_point now) {
  while (!parts_.empty() && parts_.back().pages < most) {
    parts_.pop_back();  // a remainder is not worth a folio
  }
  if (parts_.empty()) {
    end(now);
    return std::nullopt;
  }
  Part& part = parts_.back();
  part.pages -= most;
  return Part{most, part.cpu};
}

void Exchange::give_up(Clock::time_point now) {
  parts_.clear();
  end(now);
}

void Exchange::end(Clock::time_point now) {
  for (const Part& part : parts_) {
    used_ += part.pages;  // still to be exchanged, when there is time again
  }
  parts_.clear();
  still_since_.reset();
  not_before_ = now + (now - begun_) * kPause;
}

}  // namespace fileballoon
