#include "uffd/pager/slot_table.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

namespace fileballoon {
namespace {

unsigned rank(std::uint64_t present, unsigned bit) {
  return static_cast<unsigned>(std::popcount(present & ((1ULL << bit) - 1)));
}

}  // namespace

SlotTable::SlotTable(std::uint64_t pages)
    : count_((pages + kGroup - 1) / kGroup), groups_(std::make_unique<Group[]>(count_)) {}

SlotTable::~SlotTable() {
  for (std::uint64_t i = 0; i < count_; ++i) {
    std::free(groups_[i].slots);
  }
}

Slot SlotTable::find(PageKey page) const {
  const Group& group = groups_[page.index / kGroup];
  const unsigned bit = page.index % kGroup;
  if ((group.present >> bit & 1) == 0) {
    return {};
  }
  return Slot{group.slots[rank(group.present, bit)]};
}

void SlotTable::set(PageKey page, Slot slot) {
  Group& group = groups_[page.index / kGroup];
  const unsigned bit = page.index % kGroup;
  const unsigned at = rank(group.present, bit);
  if ((group.present >> bit & 1) == 0) {
    const auto entries = static_cast<unsigned>(std::popcount(group.present));
    if (entries == 0 || capacity(entries + 1) != capacity(entries)) {
      void* grown = std::realloc(group.slots, capacity(entries + 1) * sizeof(*group.slots));
      if (grown == nullptr) {
        throw std::bad_alloc();
      }
      group.slots = static_cast<std::uint32_t*>(grown);
    }
    std::memmove(group.slots + at + 1, group.slots + at, (entries - at) * sizeof(*group.slots));
    group.present |= 1ULL << bit;
    arrays_.fetch_add(footprint(entries + 1) - footprint(entries), std::memory_order_relaxed);
  }
  group.slots[at] = slot.value;
}

void SlotTable::erase(PageKey page) {
  Group& group = groups_[page.index / kGroup];
  const unsigned bit = page.index % kGroup;
  const unsigned at = rank(group.present, bit);
  const auto entries = static_cast<unsigned>(std::popcount(group.present));
  std::memmove(group.slots + at, group.slots + at + 1, (entries - at - 1) * sizeof(*group.slots));
  group.present &= ~(1ULL << bit);
  arrays_.fetch_sub(footprint(entries) - footprint(entries - 1), std::memory_order_relaxed);
  if (group.present == 0) {
    std::free(group.slots);
    group.slots = nullptr;
    return;
  }
  if (capacity(entries - 1) != capacity(entries)) {
    // Shrinking in place; if it does not, the old array stays good.
    void* shrunk = std::realloc(group.slots, capacity(entries - 1) * sizeof(*group.slots));
    if (shrunk != nullptr) {
      group.slots = static_cast<std::uint32_t*>(shrunk);
    }
  }
}

Bytes SlotTable::memory() const {
  return Bytes(count_ * sizeof(Group) + arrays_.load(std::memory_order_relaxed));
}

}  // namespace fileballoon
