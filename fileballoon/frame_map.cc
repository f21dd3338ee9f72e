#include "fileballoon/frame_map.h"

#include <algorithm>
#include <bit>

namespace fileballoon {
namespace {

/// `state` in every one of a word's 32 two-bit fields.
constexpr std::uint64_t repeated(FrameState state) {
  return static_cast<std::uint64_t>(state) * 0x5555555555555555ULL;
}

/// A one in the low bit of each field of `word` that equals `state`.
constexpr std::uint64_t matches(std::uint64_t word, FrameState state) {
  const std::uint64_t difference = word ^ repeated(state);
  return ~(difference | (difference >> 1)) & 0x5555555555555555ULL;
}

/// Mask of the fields [from, from+count) of a word; count >= 1.
constexpr std::uint64_t field_mask(std::uint64_t from, std::uint64_t count) {
  const std::uint64_t low = count >= 32 ? ~0ULL : (1ULL << (2 * count)) - 1;
  return low << (2 * from);
}

}  // namespace

FrameMap::FrameMap(std::uint64_t pages)
    : pages_(pages),
      words_((pages + kPagesPerWord - 1) / kPagesPerWord),
      map_(std::make_unique<std::atomic<std::uint64_t>[]>(words_)) {}

Bytes FrameMap::memory() const { return Bytes(words_ * sizeof(std::uint64_t)); }

FrameState FrameMap::state(std::uint64_t page) const {
  const std::uint64_t word = map_[page / kPagesPerWord].load(std::memory_order_acquire);
  return static_cast<FrameState>((word >> (2 * (page % kPagesPerWord))) & 3);
}

void FrameMap::set(std::uint64_t first, std::uint64_t count, FrameState state) {
  if (first >= pages_) {
    return;
  }
  count = std::min(count, pages_ - first);
  while (count > 0) {
    const std::uint64_t from = first % kPagesPerWord;
    const std::uint64_t take = std::min(count, kPagesPerWord - from);
    const std::uint64_t mask = field_mask(from, take);
    std::atomic<std::uint64_t>& word = map_[first / kPagesPerWord];
    std::uint64_t old = word.load(std::memory_order_relaxed);
    while (!word.compare_exchange_weak(old, (old & ~mask) | (repeated(state) & mask),
                                       std::memory_order_acq_rel)) {
    }
    first += take;
    count -= take;
  }
}

bool FrameMap::change(std::uint64_t page, FrameState expected, FrameState desired) {
  const std::uint64_t mask = field_mask(page % kPagesPerWord, 1);
  std::atomic<std::uint64_t>& word = map_[page / kPagesPerWord];
  std::uint64_t old = word.load(std::memory_order_acquire);
  do {
    if ((old & mask) != (repeated(expected) & mask)) {
      return false;
    }
  } while (!word.compare_exchange_weak(old, (old & ~mask) | (repeated(desired) & mask),
                                       std::memory_order_acq_rel));
  return true;
}

std::uint64_t FrameMap::run(std::uint64_t first, std::uint64_t limit, FrameState state) const {
  if (first >= pages_) {
    return 0;
  }
  limit = std::min(limit, pages_ - first);
  std::uint64_t length = 0;
  while (length < limit) {
    const std::uint64_t page = first + length;
    const std::uint64_t from = page % kPagesPerWord;
    const std::uint64_t word = map_[page / kPagesPerWord].load(std::memory_order_acquire);
    const std::uint64_t misses = (~matches(word, state) & 0x5555555555555555ULL) >> (2 * from);
    const std::uint64_t same = misses == 0
                                   ? kPagesPerWord - from
                                   : static_cast<std::uint64_t>(std::countr_zero(misses)) / 2;
    length += same;
    if (same < kPagesPerWord - from) {
      break;
    }
  }
  return std::min(length, limit);
}

std::uint64_t FrameMap::count(FrameState state) const {
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < words_; ++i) {
    std::uint64_t hits = matches(map_[i].load(std::memory_order_acquire), state);
    const std::uint64_t tail = pages_ - i * kPagesPerWord;
    if (tail < kPagesPerWord) {
      hits &= field_mask(0, tail);
    }
    sum += static_cast<std::uint64_t>(std::popcount(hits));
  }
  return sum;
}

}  // namespace fileballoon
