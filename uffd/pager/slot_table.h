// SlotTable: which slot of the store each paged-out page lies in. Built for two bounds at once: a
// quarter byte a page of RAM when nothing is paged out, and 4 to 5 bytes a page that is. Pages are
// taken in groups of 64, each a bitmap and an array with one entry per paged-out page of the group.
// A group is guarded by the lock of its range (RangeLocks): the caller holds it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "uffd/pager/page_store.h"

namespace fileballoon {

class SlotTable {
 public:
  explicit SlotTable(std::uint64_t pages);
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  ~SlotTable();

  /// Slot::kNone if the page is not paged out.
  [[nodiscard]] Slot find(PageKey page) const;
  /// Enters or replaces. Throws std::bad_alloc; the fault path never inserts.
  void set(PageKey page, Slot slot);
  /// The page must be there. Allocates nothing.
  void erase(PageKey page);

  /// Memory taken. Thread-safe, without a lock.
  [[nodiscard]] Bytes memory() const;

 private:
  static constexpr std::uint64_t kGroup = 64;
  /// Arrays grow in steps of 4 entries (16 bytes, malloc's step).
  static constexpr unsigned kStep = 4;

  struct Group {
    std::uint64_t present = 0;
    std::uint32_t* slots = nullptr;
  };
  [[nodiscard]] static unsigned capacity(unsigned entries) {
    return (entries + kStep - 1) / kStep * kStep;
  }

  /// Bytes of an array, with what malloc keeps beside it.
  [[nodiscard]] static std::uint64_t footprint(unsigned entries) {
    return entries == 0 ? 0 : capacity(entries) * sizeof(std::uint32_t) + 8;
  }

  std::uint64_t count_;
  std::atomic<std::uint64_t> arrays_{0};  // bytes
  std::unique_ptr<Group[]> groups_;
};

}  // namespace fileballoon
