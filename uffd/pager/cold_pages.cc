#include "uffd/pager/cold_pages.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

namespace fileballoon {

ColdPages::ColdPages(Pager& pager) : pager_(pager) {
  const std::uint64_t size = RangeLocks::kPiece.whole_pages();
  const auto objects = static_cast<std::uint32_t>(pager.ram().objects().size());
  for (std::uint32_t object = 0; object < objects; ++object) {
    const std::uint64_t pages = pager.ram().frames(object).pages();
    for (std::uint64_t first = 0; first < pages; first += size) {
      pieces_.push_back({object, first, std::min(first + size, pages)});
    }
  }
  // The golden section spreads any number of steps evenly.
  stride_ = std::max<std::uint64_t>(1, pieces_.size() * 618 / 1000);
  while (std::gcd(stride_, pieces_.size()) != 1) {
    ++stride_;
  }
}

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
  offset_ = (offset_ + visited_ * stride_) % std::max<std::uint64_t>(1, pieces_.size());
  rewind();
  return found;
}

std::uint64_t ColdPages::turn() {
  turned_ = (turned_ + stride_) % pieces_.size();
  return turned_;
}

std::uint64_t ColdPages::gather(const Piece& piece, std::uint64_t page, unsigned min_age,
                                std::size_t limit, Batch& batch) const {
  const FrameMap& frames = pager_.ram().frames(piece.object);
  const AgeMap& ages = pager_.ages(piece.object);
  batch.object = piece.object;
  for (; page < piece.end; ++page) {
    if (frames.state(page) == FrameState::backed && ages.age(page) >= min_age) {
      if (batch.pages.size() == limit) {
        return page;
      }
      batch.pages.push_back(page);
    }
  }
  return page;
}

void ColdPages::collect(const Piece& piece, unsigned min_age, Batch& batch) {
  batch.pages.clear();
  gather(piece, piece.first, min_age, std::numeric_limits<std::size_t>::max(), batch);
}

void ColdPages::next(std::size_t limit, Batch& batch) {
  batch.pages.clear();
  for (; visited_ < pieces_.size(); ++visited_, page_ = 0) {
    const Piece& at = piece(visited_);
    page_ = gather(at, at.first + page_, age_, limit, batch) - at.first;
    if (!batch.pages.empty()) {
      return;
    }
  }
}

}  // namespace fileballoon
