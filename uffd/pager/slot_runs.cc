#include "uffd/pager/slot_runs.h"

#include <algorithm>
#include <bit>

namespace fileballoon {

SlotRuns::SlotRuns(std::uint32_t slots) : slots_(slots), taken_bits_((slots + 63ULL) / 64, 0) {}

bool SlotRuns::is_taken(std::uint32_t slot) const {
  return (taken_bits_[slot / 64] >> (slot % 64) & 1) != 0;
}

SlotRun SlotRuns::find(std::uint32_t at, std::uint32_t end, std::uint32_t limit) const {
  while (at < end) {
    const std::uint64_t free_bits = ~taken_bits_[at / 64] >> (at % 64);
    if (free_bits != 0) {
      at += static_cast<std::uint32_t>(std::countr_zero(free_bits));
      break;
    }
    at = (at / 64 + 1) * 64;
  }
  if (at >= end) {
    return {end, 0};
  }
  std::uint32_t count = 0;
  limit = std::min(limit, end - at);
  while (count < limit) {
    const std::uint32_t slot = at + count;
    const std::uint32_t in_word = 64 - slot % 64;
    const auto free_here = std::min(
        in_word,
        static_cast<std::uint32_t>(std::countr_zero(taken_bits_[slot / 64] >> (slot % 64))));
    count += free_here;
    if (free_here < in_word) {
      break;
    }
  }
  return {at, std::min(count, limit)};
}

void SlotRuns::mark(SlotRun run) {
  for (std::uint32_t slot = run.first; slot < run.first + run.count; ++slot) {
    taken_bits_[slot / 64] |= 1ULL << (slot % 64);
  }
  taken_ += run.count;
}

std::uint32_t SlotRuns::take(std::uint32_t count, std::vector<SlotRun>& out) {
  count = std::min(count, slots_ - taken_);
  if (count == 0) {
    return 0;
  }
  if (cursor_ >= slots_) {
    cursor_ = 0;
  }
  // One run for all of them, soon after the cursor?
  const std::uint32_t near = std::min(slots_, cursor_ + std::min(kSearch, slots_ - cursor_));
  for (SlotRun run = find(cursor_, near, count); run.count > 0;
       run = find(run.first + run.count, near, count)) {
    if (run.count == count) {
      mark(run);
      out.push_back(run);
      cursor_ = run.first + count;
      return count;
    }
  }
  // Pieces from the cursor on, then from the start.
  std::uint32_t left = count;
  for (int lap = 0; lap < 2 && left > 0; ++lap) {
    for (SlotRun run = find(cursor_, slots_, left); run.count > 0 && left > 0;
         run = find(cursor_, slots_, left)) {
      mark(run);
      out.push_back(run);
      left -= run.count;
      cursor_ = run.first + run.count;
    }
    if (left > 0) {
      cursor_ = 0;
    }
  }
  return count - left;
}

void SlotRuns::give_back(std::uint32_t slot) {
  if (is_taken(slot)) {
    taken_bits_[slot / 64] &= ~(1ULL << (slot % 64));
    --taken_;
  }
}

}  // namespace fileballoon
