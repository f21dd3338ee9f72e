#include "fileballoon/deflation_meter.h"

#include <algorithm>

namespace fileballoon {

DeflationMeter::DeflationMeter(Bytes ram)
    : fast_limit_(std::max(kFastLeast, Bytes(ram.count() / kFastPart))) {}

DeflationMeter::Change DeflationMeter::add(Bytes amount, Clock::time_point now) {
  if (amount.count() == 0) {
    return look(now);
  }
  const std::int64_t slot = slot_of(now);
  const auto passed = slot - newest_;
  for (std::int64_t i = 1; i <= std::min<std::int64_t>(passed, kSlots); ++i) {
    slots_[static_cast<std::size_t>(newest_ + i) % kSlots] = Bytes(0);
  }
  newest_ = std::max(newest_, slot);
  slots_[static_cast<std::size_t>(newest_) % kSlots] += amount;
  total_ += amount;
  const Bytes rate = per_second(now);
  if (!deflating_) {
    if (rate < kLeast) {
      return Change::none;
    }
    deflating_ = true;
    fast_ = rate >= fast_limit_;
    episode_ = rate;
    began_ = now;
    last_ = now;
    return fast_ ? Change::became_fast : Change::began;
  }
  episode_ += amount;
  last_ = now;
  if (!fast_ && rate >= fast_limit_) {
    fast_ = true;
    return Change::became_fast;
  }
  return Change::none;
}

DeflationMeter::Change DeflationMeter::look(Clock::time_point now) {
  if (!deflating_ || now - last_ < kQuiet) {
    return Change::none;
  }
  deflating_ = false;
  fast_ = false;
  return Change::ended;
}

Bytes DeflationMeter::per_second(Clock::time_point now) const {
  const std::int64_t slot = slot_of(now);
  Bytes sum;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(kSlots); ++i) {
    const std::int64_t number = newest_ - i;
    if (number >= 0 && number > slot - static_cast<std::int64_t>(kSlots)) {
      sum += slots_[static_cast<std::size_t>(number) % kSlots];
    }
  }
  return sum;
}

}  // namespace fileballoon
