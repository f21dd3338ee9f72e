#include "fileballoon/give_way.h"

#include <algorithm>

namespace fileballoon {
namespace {

/// Looks closer together tell no rate: programs are given pages in pieces.
constexpr std::chrono::milliseconds kLeastBetween{40};

double seconds(std::chrono::nanoseconds span) {
  return std::chrono::duration<double>(span).count();
}

}  // namespace

std::uint64_t GiveWay::look(Bytes free, Bytes watermark, Clock::time_point now) {
  if (!last_ || now < last_->at) {
    last_ = Look{free, now};
    given_ = Bytes(0);
    rate_ = fresh_rate_ = 0;
  } else if (now - last_->at >= kLeastBetween) {
    const Bytes taken = last_->free + given_ - free;  // not below 0
    const double rate = static_cast<double>(taken.count()) / seconds(now - last_->at);
    rate_ = std::min(rate, fresh_rate_);  // a burst that is over by the next look is none
    fresh_rate_ = rate;
    last_ = Look{free, now};
    given_ = Bytes(0);
  }
  const Bytes ahead(static_cast<std::uint64_t>(rate_ * seconds(kAhead)));
  if (free >= watermark + ahead) {
    return 0;
  }
  const Bytes wanted = (watermark - free) + ahead + ahead;
  return std::clamp(wanted, kLeast, kMost).whole_pages();
}

}  // namespace fileballoon
