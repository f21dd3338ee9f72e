// TierStore: compressed memory first, a file behind it. Pages that do not compress go straight to
// the file; when memory runs short, the oldest pages are spilled, whole slabs at a time, so that
// nothing is left half empty. A page's slot changes when it is spilled: its owner is told.
#pragma once

#include <memory>

#include "uffd/pager/compressed_store.h"
#include "uffd/pager/file_store.h"

namespace fileballoon {

class TierStore final : public PageStore {
 public:
  TierStore(std::unique_ptr<CompressedStore> memory, std::unique_ptr<FileStore> file);
  ~TierStore() override;

  [[nodiscard]] StoreStatus put(std::span<PagePut> pages) override;
  [[nodiscard]] StoreStatus get(std::span<PageGet> pages) override;
  void free(Slot slot) override;
  /// Spills from 7/8 of memory's limit down to 3/4, some slabs a call.
  void maintain(SlotOwner& owner) override;
  [[nodiscard]] StoreStats stats() const override;

  /// Moves up to `slabs` slabs of the oldest pages to the file. Returns why it stopped: ok, or what
  /// the file answered; pages that the file did not take stay in memory.
  [[nodiscard]] StoreStatus spill(SlotOwner& owner, int slabs);

 private:
  struct Buffers;

  [[nodiscard]] StoreStatus spill_slab(SlotOwner& owner);
  void put_in_file(std::span<PagePut> pages);

  std::unique_ptr<CompressedStore> memory_;
  std::unique_ptr<FileStore> file_;
  std::unique_ptr<Buffers> buffers_;  // of the one thread that puts and maintains
  std::atomic<std::uint64_t> spilled_{0};
};

}  // namespace fileballoon
