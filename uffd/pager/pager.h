// Pager: the book of a VM's paged-out pages, and their way back in. It knows in which slot of the
// store each page lies, gives contents to the fault engine (PageSource), brings everything back at
// a detach, and follows pages that the store moves. The way out is PageWriter's. The fault engine's
// reader threads and one control thread call it.
//
// Lock order: a range lock of WatchedRam, then the store's inner locks. Page-out and the store's
// housekeeping hold no range lock while they compress or write.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "uffd/fault_engine.h"
#include "uffd/pager/age_map.h"
#include "uffd/pager/lost_pages.h"
#include "uffd/pager/page_store.h"
#include "uffd/pager/pager_events.h"
#include "uffd/pager/slot_table.h"
#include "uffd/watched_ram.h"

namespace fileballoon {

struct PagerStats {
  std::uint64_t paged_pages = 0;  ///< in the store now
  std::uint64_t paged_out = 0;    ///< pages stored and punched, since start
  std::uint64_t zero_pages = 0;   ///< found zero while paging out: discarded, not stored
  std::uint64_t paged_in = 0;     ///< pages brought back, since start
  std::uint64_t faults = 0;       ///< page-ins that a thread of the VM waited for
  std::uint64_t read_ahead = 0;   ///< pages brought back beside these, ahead of a sequential reader
  std::uint64_t write_races = 0;  ///< page-outs given up because the page was written meanwhile
  std::uint64_t rejected = 0;     ///< page-outs given up because the page does not compress
  std::uint64_t lost_pages = 0;   ///< contents that could not be had: poisoned
  Bytes metadata;                 ///< all memory beside page contents
  StoreStats store;
};

class Pager final : public PageSource, public SlotOwner {
 public:
  struct Options {
    /// Most pages brought in at one fault. 32 (128 KiB): a sequential reader waits for one read of
    /// the disk's cheapest length, and at most some 50 µs for decompression.
    std::uint32_t read_ahead = 32;
    /// Poison lost pages where the kernel can (Linux 6.6); false: as on kernels that cannot.
    bool poison = true;
  };

  /// `ram` must outlive this and be watched for missing pages and write-protection. Refuses memory
  /// that can hold huge pages (a punch may then zero a page that it does not free), and objects
  /// that are not shared memory; each error names the remedy.
  [[nodiscard]] static Result<std::unique_ptr<Pager>> create(WatchedRam& ram,
                                                             std::unique_ptr<PageStore> store,
                                                             Options options);
  [[nodiscard]] static Result<std::unique_ptr<Pager>> create(WatchedRam& ram,
                                                             std::unique_ptr<PageStore> store) {
    return create(ram, std::move(store), Options());
  }

  // PageSource: for the fault engine, under the range's lock. After its first call in a thread it
  // allocates nothing.
  [[nodiscard]] Content fetch(std::uint32_t object, std::uint64_t first, std::uint32_t count,
                              std::uint64_t fault) override;
  void filled(std::uint32_t object, std::uint64_t first, std::uint32_t count) override;

  // SlotOwner: for the store's housekeeping.
  bool with(PageKey key, Slot slot, const std::function<Slot()>& move) override;

  struct Progress {
    std::uint64_t done = 0;   ///< pages brought back so far
    std::uint64_t total = 0;  ///< pages that were in the store at the start
    std::uint64_t lost = 0;   ///< of those done: poisoned, their content is lost
  };
  /// Brings every page back, telling `progress` after each 2 MiB; false from it stops early. The
  /// guest runs on meanwhile. A lost page that cannot be poisoned stays paged: who lets go of the
  /// memory then would leave zeros. Must not run beside a PageWriter. Control thread.
  Progress page_in_all(const std::function<bool(const Progress&)>& progress);
  /// Brings about `pages` back, up to 2 MiB more, going on where the last call ended; a round over
  /// all memory at most. Returns how many it brought. For the thread of the PageWriter.
  std::uint64_t page_in_some(std::uint64_t pages);

  [[nodiscard]] PagerStats stats() const;
  [[nodiscard]] PagerEvents& events() { return events_; }
  [[nodiscard]] PageStore& store() { return *store_; }
  [[nodiscard]] WatchedRam& ram() { return ram_; }
  [[nodiscard]] AgeMap& ages(std::uint32_t object) { return *ages_[object]; }
  [[nodiscard]] std::vector<AgeMap*> all_ages();

  // For PageWriter, which holds the range's lock.
  [[nodiscard]] PageKey key_of(std::uint32_t object, std::uint64_t page) const {
    return PageKey{static_cast<std::uint32_t>(first_key_[object] + page)};
  }
  /// Enters a page that is about to be punched; drops what was stored for it before. False without
  /// memory.
  [[nodiscard]] bool enter(PageKey key, Slot slot);
  /// Takes that back, and drops what is stored: the page stays in memory.
  void withdraw(PageKey key);

  struct Counters {
    std::atomic<std::uint64_t> paged{0}, paged_out{0}, zero{0}, paged_in{0}, faults{0},
        read_ahead{0}, write_races{0}, rejected{0}, lost{0};
  };
  [[nodiscard]] Counters& counters() { return counters_; }

 private:
  Pager(WatchedRam& ram, std::unique_ptr<PageStore> store, Options options);
  [[nodiscard]] bool is_given_up(PageKey key) const;
  [[nodiscard]] Content content_of(std::uint32_t object, std::uint64_t first, std::uint32_t count,
                                   std::uint64_t fault);
  void forget(std::uint32_t object, std::uint64_t first, std::uint32_t count);
  void page_in_piece(std::uint32_t object, HostRange piece, Progress& progress);

  WatchedRam& ram_;
  std::unique_ptr<PageStore> store_;
  Options options_;
  std::vector<std::uint64_t> first_key_;  // per object; one more than objects
  std::unique_ptr<SlotTable> table_;      // a page's entry: under its range's lock
  std::vector<std::unique_ptr<AgeMap>> ages_;
  Counters counters_;
  PagerEvents events_;
  LostPages lost_;
  std::uint64_t next_piece_ = 0;  // of page_in_some(), over all objects
};

}  // namespace fileballoon
