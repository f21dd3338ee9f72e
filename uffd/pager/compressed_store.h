// CompressedStore: pages compressed into memory. The right home for pages that may be wanted again:
// a page comes back in about a microsecond. Same-filled pages take no content memory; pages that
// compress badly are rejected, since storing them would gain next to nothing. A header of 9 bytes
// (key, checksum, length) precedes each content and is verified before a page is given back.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "uffd/pager/codec.h"
#include "uffd/pager/page_store.h"
#include "uffd/pager/same_filled.h"
#include "uffd/pager/slab_arena.h"

namespace fileballoon {

struct CompressedStoreOptions {
  Bytes limit = Bytes::mib(256);  ///< of memory for content
  Compression compression = Compression::lz4;
};

class CompressedStore final : public PageStore {
 public:
  /// Content longer than this is rejected: 20 objects a slab, so that at least a fifth is saved.
  static constexpr std::size_t kMaxContent = 3264 - 9;

  /// Throws std::system_error or std::bad_alloc.
  explicit CompressedStore(const CompressedStoreOptions& options);

  [[nodiscard]] StoreStatus put(std::span<PagePut> pages) override;
  [[nodiscard]] StoreStatus get(std::span<PageGet> pages) override;
  void free(Slot slot) override;
  void maintain(SlotOwner& owner) override;
  [[nodiscard]] StoreStats stats() const override;

  /// For the tier. A stored page and the key it was put under.
  struct Stored {
    PageKey key;
    Slot slot;
  };
  /// The pages of the oldest slab, about 10 to 1,000; empty if there is none. The slab takes no new
  /// pages until it is empty or kept.
  [[nodiscard]] std::optional<std::uint32_t> oldest(std::vector<Stored>& out);
  void keep(std::uint32_t slab) { arena_.keep(slab); }
  void trim() { arena_.trim(); }

  /// For tests: the stored bytes of a page (header and content), to damage them.
  [[nodiscard]] std::span<std::byte> raw(Slot slot);

 private:
  [[nodiscard]] StoreStatus put_page(PagePut& page);
  [[nodiscard]] StoreStatus get_page(PageGet& page);
  void prefetch_next(Slot slot) const;
  void list(std::uint32_t slab, std::vector<Stored>& out) const;
  void move_slab(std::uint32_t slab, SlotOwner& owner);

  std::unique_ptr<Codec> codec_;
  std::mutex put_mutex_;  // before arena's and words_'; never taken by get() or free()
  SlabArena arena_;
  WordTable words_;
  std::vector<std::byte> scratch_;  // under put_mutex_
  std::vector<Stored> slab_pages_;  // under put_mutex_
  std::atomic<std::uint64_t> pages_{0};
  std::atomic<std::uint64_t> same_filled_{0};
  std::atomic<std::uint64_t> payload_{0};
  std::atomic<std::uint64_t> rejected_{0};
  std::atomic<std::uint64_t> corrupt_{0};
};

}  // namespace fileballoon
