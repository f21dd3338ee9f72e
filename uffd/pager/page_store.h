// PageStore: where the content of paged-out frames lives. Three kinds sit behind it: compressed
// memory, a file or block device, and a tier of both. A store guarantees that get() gives back
// exactly the bytes that were put under that key, or says that it cannot; it never makes up
// content. The pager is the only caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string_view>

#include "fileballoon/bytes.h"

namespace fileballoon {

/// Which page a content belongs to: its page index in the pager's memory. Stores mix it into the
/// checksum, so that the content of one page can never be taken for that of another.
struct PageKey {
  std::uint32_t index = 0;
  constexpr auto operator<=>(const PageKey&) const = default;
};

/// Where a store put a page. Only the store that gave it out can read it.
struct Slot {
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t value = kNone;
  [[nodiscard]] constexpr bool valid() const { return value != kNone; }
  constexpr bool operator==(const Slot&) const = default;
};

enum class StoreStatus : std::uint8_t {
  ok,
  full,         ///< no room left within the limit, or the file system is full
  rejected,     ///< this page is not worth storing here (it does not compress)
  over_budget,  ///< today's write budget is used up
  io_error,     ///< the file or device failed
  corrupt,      ///< what was read back is not what was written
  unseen,       ///< not the store: the kernel does not show which pages are in use
};

[[nodiscard]] std::string_view to_string(StoreStatus status);

/// One page to store. `data` is kPageSize bytes, page aligned, and does not change during put().
struct PagePut {
  PageKey key;
  const std::byte* data = nullptr;
  Slot slot = {};  ///< out: where it is, if status is ok
  StoreStatus status = StoreStatus::ok;
};

/// One page to fetch into `out`: kPageSize bytes, page aligned.
struct PageGet {
  PageKey key;
  Slot slot;
  std::byte* out = nullptr;
  StoreStatus status = StoreStatus::ok;  ///< out; `out` is undefined unless ok
  bool slept = false;                    ///< out: the thread slept until the medium had it
};

struct StoreStats {
  std::uint64_t pages = 0;              ///< stored now
  std::uint64_t same_filled_pages = 0;  ///< of these, kept as one repeated word
  std::uint64_t file_pages = 0;         ///< of these, in a file or device
  Bytes payload;                        ///< compressed bytes of pages in memory
  Bytes memory;                         ///< memory used for content (slabs), waste included
  Bytes metadata;                       ///< memory used for everything else
  Bytes disk;                           ///< space taken in the file
  Bytes limit;                          ///< of the content
  std::uint64_t rejected = 0;           ///< pages turned away as not worth storing, since start
  std::uint64_t spilled = 0;            ///< pages moved from memory to the file, since start
  std::uint64_t io_errors = 0;
  std::uint64_t corrupt = 0;
};

/// The pager as stores see it, for moving pages that are already stored. with() runs `move` while
/// nobody can read, free or move the page `key`, provided it still lies in `slot`; the slot that
/// `move` returns becomes the page's slot. Returns false, without a call, if it does not lie there.
class SlotOwner {
 public:
  SlotOwner() = default;
  SlotOwner(const SlotOwner&) = delete;
  SlotOwner& operator=(const SlotOwner&) = delete;
  virtual ~SlotOwner() = default;
  virtual bool with(PageKey key, Slot slot, const std::function<Slot()>& move) = 0;
};

class PageStore {
 public:
  PageStore() = default;
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;
  virtual ~PageStore() = default;

  /// Stores each page or says in its status why not; returns the first status that is not ok. Takes
  /// no lock of the caller's; the caller must hold none that SlotOwner::with() takes. Thread-safe
  /// against get() and free(); concurrent put() calls queue.
  [[nodiscard]] virtual StoreStatus put(std::span<PagePut> pages) = 0;

  /// put() for a caller that has something else to do meanwhile: where the medium works by itself
  /// it returns at once, true, and the slots and statuses are there after finish(); until then
  /// `pages` and what they point to stay where and as they are. False: all is done, as by put().
  /// One batch at a time: whoever puts next waits for it. For one thread.
  [[nodiscard]] virtual bool start(std::span<PagePut> pages) {
    (void)put(pages);  // each page has its status
    return false;
  }
  virtual void finish() {}

  /// Fetches pages; the caller keeps each slot from being freed or moved meanwhile. Returns the
  /// first status that is not ok. Thread-safe, allocates nothing, never waits for a put().
  [[nodiscard]] virtual StoreStatus get(std::span<PageGet> pages) = 0;

  /// Gives a slot back. Thread-safe; cheap enough for the fault path.
  virtual void free(Slot slot) = 0;

  /// Housekeeping: returns unused memory, compacts, spills. Called now and then by the thread that
  /// puts, holding no lock.
  virtual void maintain(SlotOwner& owner) = 0;

  /// Thread-safe.
  [[nodiscard]] virtual StoreStats stats() const = 0;
};

/// Fetches a single page.
[[nodiscard]] inline StoreStatus get_page(PageStore& store, PageKey key, Slot slot,
                                          std::byte* out) {
  PageGet page{key, slot, out};
  return store.get({&page, 1});
}

}  // namespace fileballoon
