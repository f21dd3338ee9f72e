#include "uffd/pager/tier_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "uffd/pager/page_buffer.h"

namespace fileballoon {
namespace {

constexpr std::uint32_t kFileBit = 1U << 31;

bool in_file(Slot slot) { return (slot.value & kFileBit) != 0; }
Slot file_slot(Slot slot) { return Slot{slot.value & ~kFileBit}; }
Slot tagged(Slot slot) { return Slot{slot.value | kFileBit}; }

}  // namespace

struct TierStore::Buffers {
  static constexpr std::size_t kPages = 128;

  std::mutex mutex;  // put() and spill(); before the stores' own
  PageBuffer pages{kPages};
  std::vector<CompressedStore::Stored> stored;
  std::vector<PagePut> puts;
  std::vector<Slot> from;
};

TierStore::TierStore(std::unique_ptr<CompressedStore> memory, std::unique_ptr<FileStore> file)
    : memory_(std::move(memory)), file_(std::move(file)), buffers_(std::make_unique<Buffers>()) {}

TierStore::~TierStore() = default;

StoreStatus TierStore::put(std::span<PagePut> pages) {
  const std::lock_guard guard(buffers_->mutex);
  if (memory_->put(pages) == StoreStatus::ok) {
    return StoreStatus::ok;
  }
  // What memory did not take goes to the file, in as few writes as possible.
  std::vector<PagePut>& rest = buffers_->puts;
  rest.clear();
  for (const PagePut& page : pages) {
    if (page.status != StoreStatus::ok) {
      rest.push_back(page);
    }
  }
  put_in_file(rest);
  StoreStatus first = StoreStatus::ok;
  auto done = rest.begin();
  for (PagePut& page : pages) {
    if (page.status != StoreStatus::ok) {
      page = *done++;
    }
    if (first == StoreStatus::ok) {
      first = page.status;
    }
  }
  return first;
}

void TierStore::put_in_file(std::span<PagePut> pages) {
  (void)file_->put(pages);  // each page has its status
  for (PagePut& page : pages) {
    if (page.status == StoreStatus::ok) {
      page.slot = tagged(page.slot);
    }
  }
}

StoreStatus TierStore::get(std::span<PageGet> pages) {
  // Runs of pages that lie in the same place are fetched together.
  StoreStatus first = StoreStatus::ok;
  for (std::size_t at = 0; at < pages.size();) {
    const bool file = in_file(pages[at].slot);
    std::size_t end = at;
    for (; end < pages.size() && in_file(pages[end].slot) == file; ++end) {
      if (file) {
        pages[end].slot = file_slot(pages[end].slot);
      }
    }
    PageStore& store = file ? static_cast<PageStore&>(*file_) : *memory_;
    const StoreStatus status = store.get(pages.subspan(at, end - at));
    for (; at < end; ++at) {
      if (file) {
        pages[at].slot = tagged(pages[at].slot);
      }
    }
    if (first == StoreStatus::ok) {
      first = status;
    }
  }
  return first;
}

void TierStore::free(Slot slot) {
  if (in_file(slot)) {
    file_->free(file_slot(slot));
  } else {
    memory_->free(slot);
  }
}

StoreStatus TierStore::spill(SlotOwner& owner, int slabs) {
  const std::lock_guard guard(buffers_->mutex);
  StoreStatus status = StoreStatus::ok;
  for (int i = 0; i < slabs && status == StoreStatus::ok; ++i) {
    status = spill_slab(owner);
  }
  memory_->trim();
  return status;
}

StoreStatus TierStore::spill_slab(SlotOwner& owner) {
  Buffers& buffers = *buffers_;
  buffers.stored.clear();
  const auto slab = memory_->oldest(buffers.stored);
  if (!slab) {
    return StoreStatus::full;  // there is nothing to spill
  }
  StoreStatus status = StoreStatus::ok;
  for (std::size_t at = 0; at < buffers.stored.size() && status == StoreStatus::ok;) {
    buffers.puts.clear();
    buffers.from.clear();
    for (; at < buffers.stored.size() && buffers.puts.size() < Buffers::kPages; ++at) {
      const auto [key, slot] = buffers.stored[at];
      std::byte* copy = buffers.pages.page(buffers.puts.size());
      bool good = false;
      (void)owner.with(key, slot, [&, key = key, slot = slot] {
        good = get_page(*memory_, key, slot, copy) == StoreStatus::ok;
        return slot;
      });
      if (good) {  // damaged pages stay: their fault will say so
        buffers.puts.push_back({key, copy});
        buffers.from.push_back(slot);
      }
    }
    if (buffers.puts.empty()) {
      continue;
    }
    status = file_->put(buffers.puts);
    for (std::size_t i = 0; i < buffers.puts.size(); ++i) {
      const PagePut& put = buffers.puts[i];
      if (put.status != StoreStatus::ok) {
        continue;
      }
      const bool moved = owner.with(put.key, buffers.from[i], [&] { return tagged(put.slot); });
      if (moved) {
        memory_->free(buffers.from[i]);
        spilled_.fetch_add(1, std::memory_order_relaxed);
      } else {
        file_->free(put.slot);  // it was paged in meanwhile
      }
    }
  }
  memory_->keep(*slab);  // no effect if it is empty now
  return status;
}

void TierStore::maintain(SlotOwner& owner) {
  constexpr int kSlabsPerCall = 32;
  memory_->maintain(owner);
  const StoreStats stats = memory_->stats();
  const std::uint64_t limit = stats.limit.count();
  if (stats.memory.count() <= limit / 8 * 7) {
    return;
  }
  const std::uint64_t excess = stats.memory.count() - limit / 4 * 3;
  (void)spill(owner, static_cast<int>(std::min<std::uint64_t>(kSlabsPerCall,
                                                              excess / SlabArena::kSlabSize + 1)));
}

StoreStats TierStore::stats() const {
  StoreStats sum = memory_->stats();
  const StoreStats file = file_->stats();
  sum.pages += file.pages;
  sum.file_pages = file.pages;
  sum.metadata += file.metadata;
  sum.disk = file.disk;
  sum.limit += file.limit;
  sum.io_errors += file.io_errors;
  sum.corrupt += file.corrupt;
  sum.spilled = spilled_.load(std::memory_order_relaxed);
  return sum;
}

}  // namespace fileballoon
