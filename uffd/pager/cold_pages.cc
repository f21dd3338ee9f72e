#include "uffd/pager/cold_pages.h"

#include <array>

namespace fileballoon {

std::uint64_t ColdPages::start(std::uint64_t wanted, unsigned min_age) {
  std::array<std::uint64_t, AgeMap::kOldest + 1> by_age{};
  const auto objects = static_cast<std::uint32_t>(pager_.ram().objects().size());
  for (std::uint32_t object = 0; object < objects; ++object) {
    const FrameMap& frames = pager_.ram().frames(object);
    const AgeMap& ages = pager_.ages(object);
    for (std::uint64_t page = 0; page < frames.pages();) {
      const std::uint64_t backed = frames.run(page, frames.pages() - page, FrameState::backed);
      for (std::uint64_t i = 0; i < backed; ++i) {
        ++by_age[ages.age(page + i)];
      }
      page += backed + 1;
    }
  }
  std::uint64_t found = by_age[AgeMap::kOldest];
  for (age_ = AgeMap::kOldest; age_ > min_age && found < wanted;) {
    found += by_age[--age_];
  }
  rewind();
  return found;
}

void ColdPages::next(std::size_t limit, Batch& batch) {
  batch.pages.clear();
  const std::uint64_t piece = RangeLocks::kPiece.whole_pages();
  const auto objects = static_cast<std::uint32_t>(pager_.ram().objects().size());
  for (; object_ < objects; ++object_, page_ = 0) {
    const FrameMap& frames = pager_.ram().frames(object_);
    const AgeMap& ages = pager_.ages(object_);
    for (; page_ < frames.pages(); ++page_) {
      if (!batch.pages.empty() &&
          (batch.pages.size() == limit || page_ / piece != batch.pages.front() / piece)) {
        return;
      }
      if (frames.state(page_) == FrameState::backed && ages.age(page_) >= age_) {
        batch.object = object_;
        batch.pages.push_back(page_);
      }
    }
    if (!batch.pages.empty()) {
      return;  // the cursor stands at this object's end
    }
  }
}

}  // namespace fileballoon
