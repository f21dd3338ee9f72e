#include "uffd/pager/compressed_store.h"

#include <algorithm>
#include <cstring>

#include "uffd/pager/checksum.h"

namespace fileballoon {
namespace {

// A slot is an object (30 bits), or, with this bit, the index of a repeated word. The topmost bit
// stays free for the tier.
constexpr std::uint32_t kSameFilledBit = 1U << ObjectId::kBits;

/// What lies before the content; copied in and out, since objects are not aligned to it.
struct Header {
  PageKey key;
  std::uint32_t checksum = 0;  ///< 28 bits, of the content, not of the page: less to hash
  std::uint32_t length = 0;    ///< of the content; 12 bits, below a page
};
// Every paged-out page has one: packed, so that all that is kept of a page stays below 16 bytes.
constexpr std::size_t kHeaderSize = 9;
constexpr unsigned kLengthBits = 12;
static_assert(CompressedStore::kMaxContent < std::size_t{1} << kLengthBits);

std::uint32_t checksum28(std::span<const std::byte> content, PageKey key) {
  return checksum32(content, key) >> (32 - 28);
}
static_assert(SlabArena::kMaxObject >= kHeaderSize + CompressedStore::kMaxContent);

void write_header(std::byte* at, const Header& header) {
  const std::uint64_t packed = std::uint64_t{header.checksum} << kLengthBits | header.length;
  std::memcpy(at, &header.key, 4);
  std::memcpy(at + 4, &packed, 5);
}

Header read_header(const std::byte* at) {
  Header header;
  std::uint64_t packed = 0;
  std::memcpy(&header.key, at, 4);
  std::memcpy(&packed, at + 4, 5);
  header.checksum = static_cast<std::uint32_t>(packed >> kLengthBits);
  header.length = static_cast<std::uint32_t>(packed) & ((1U << kLengthBits) - 1);
  return header;
}

// Contents were written long ago and lie in no cache. Asking for all lines of one at once takes
// little longer than waiting for one; the decompressor would come to them one after the other.
void prefetch(const std::byte* at, std::size_t length) {
  constexpr std::size_t kLine = 64;
  constexpr std::size_t kMost = 2048;  // farther on the hardware has found the stream
  for (std::size_t i = 0; i < std::min(length, kMost); i += kLine) {
    __builtin_prefetch(at + i);
  }
}

}  // namespace

CompressedStore::CompressedStore(const CompressedStoreOptions& options)
    : codec_(make_codec(options.compression)), arena_(options.limit), scratch_(kMaxContent) {}

StoreStatus CompressedStore::put(std::span<PagePut> pages) {
  const std::lock_guard guard(put_mutex_);
  StoreStatus first = StoreStatus::ok;
  for (PagePut& page : pages) {
    page.status = put_page(page);
    if (first == StoreStatus::ok) {
      first = page.status;
    }
  }
  return first;
}

StoreStatus CompressedStore::put_page(PagePut& page) {
  if (const auto word = same_filled(page.data)) {
    if (const auto index = words_.acquire(*word)) {
      page.slot = Slot{kSameFilledBit | *index};
      pages_.fetch_add(1, std::memory_order_relaxed);
      same_filled_.fetch_add(1, std::memory_order_relaxed);
      return StoreStatus::ok;
    }
  }
  const std::size_t length = codec_->compress(page.data, scratch_);
  if (length == 0) {
    rejected_.fetch_add(1, std::memory_order_relaxed);
    return StoreStatus::rejected;
  }
  const auto object = arena_.allocate(kHeaderSize + length);
  if (!object) {
    return StoreStatus::full;
  }
  const std::span<const std::byte> content(scratch_.data(), length);
  std::byte* at = arena_.data(*object);
  write_header(at, {page.key, checksum28(content, page.key), static_cast<std::uint32_t>(length)});
  std::memcpy(at + kHeaderSize, content.data(), length);
  page.slot = Slot{object->value};
  pages_.fetch_add(1, std::memory_order_relaxed);
  payload_.fetch_add(length, std::memory_order_relaxed);
  return StoreStatus::ok;
}

StoreStatus CompressedStore::get(std::span<PageGet> pages) {
  StoreStatus first = StoreStatus::ok;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    PageGet& page = pages[i];
    if (i + 1 < pages.size()) {
      prefetch_next(pages[i + 1].slot);
    }
    page.status = get_page(page);
    if (page.status != StoreStatus::ok) {
      corrupt_.fetch_add(1, std::memory_order_relaxed);
      if (first == StoreStatus::ok) {
        first = page.status;
      }
    }
  }
  return first;
}

void CompressedStore::prefetch_next(Slot slot) const {
  const ObjectId object{slot.value};
  if ((slot.value & kSameFilledBit) == 0 && arena_.is_live(object)) {
    prefetch(arena_.data(object), arena_.capacity(object));
  }
}

StoreStatus CompressedStore::get_page(PageGet& page) {
  if ((page.slot.value & kSameFilledBit) != 0) {
    const std::uint32_t index = page.slot.value & ~kSameFilledBit;
    if (index >= WordTable::kCapacity) {
      return StoreStatus::corrupt;
    }
    fill_page(page.out, words_.word(index));
    return StoreStatus::ok;
  }
  const ObjectId object{page.slot.value};
  if (!arena_.is_live(object)) {
    return StoreStatus::corrupt;
  }
  const std::byte* at = arena_.data(object);
  prefetch(at, arena_.capacity(object));
  const Header header = read_header(at);
  if (header.key != page.key || header.length > arena_.capacity(object) - kHeaderSize) {
    return StoreStatus::corrupt;
  }
  const std::span<const std::byte> content(at + kHeaderSize, header.length);
  if (checksum28(content, page.key) != header.checksum || !codec_->decompress(content, page.out)) {
    return StoreStatus::corrupt;
  }
  return StoreStatus::ok;
}

void CompressedStore::free(Slot slot) {
  pages_.fetch_sub(1, std::memory_order_relaxed);
  if ((slot.value & kSameFilledBit) != 0) {
    same_filled_.fetch_sub(1, std::memory_order_relaxed);
    words_.release(slot.value & ~kSameFilledBit);
    return;
  }
  const ObjectId object{slot.value};
  payload_.fetch_sub(read_header(arena_.data(object)).length, std::memory_order_relaxed);
  arena_.free(object);
}

void CompressedStore::maintain(SlotOwner& owner) {
  // A bounded amount a call, so that page-out is not held up: 16 slabs are 1 MiB of copying.
  constexpr int kSlabsPerCall = 16;
  const std::lock_guard guard(put_mutex_);
  for (int i = 0; i < kSlabsPerCall; ++i) {
    const auto slab = arena_.sparse_slab();
    if (!slab) {
      break;
    }
    move_slab(*slab, owner);
    arena_.keep(*slab);  // no effect if it is empty now, as it should be
  }
  arena_.trim();
}

void CompressedStore::move_slab(std::uint32_t slab, SlotOwner& owner) {
  slab_pages_.clear();
  list(slab, slab_pages_);
  for (const auto& [key, slot] : slab_pages_) {
    const ObjectId from{slot.value};
    (void)owner.with(key, Slot{from.value}, [&] {
      const std::byte* source = arena_.data(from);
      const std::size_t size = kHeaderSize + read_header(source).length;
      const auto to = size <= arena_.capacity(from) ? arena_.allocate(size) : std::nullopt;
      if (!to) {
        return Slot{from.value};
      }
      std::memcpy(arena_.data(*to), source, size);
      arena_.free(from);
      return Slot{to->value};
    });
  }
}

// A page may be freed as soon as the arena's lock is given up: SlotOwner::with() tells.
void CompressedStore::list(std::uint32_t slab, std::vector<Stored>& out) const {
  arena_.for_each(slab, [&](ObjectId object, const std::byte* at) {
    out.push_back({read_header(at).key, Slot{object.value}});
  });
}

std::optional<std::uint32_t> CompressedStore::oldest(std::vector<Stored>& out) {
  const std::lock_guard guard(put_mutex_);
  const auto slab = arena_.oldest_slab();
  if (slab) {
    list(*slab, out);
  }
  return slab;
}

std::span<std::byte> CompressedStore::raw(Slot slot) {
  const ObjectId object{slot.value};
  std::byte* at = arena_.data(object);
  return {at, kHeaderSize + read_header(at).length};
}

StoreStats CompressedStore::stats() const {
  StoreStats stats;
  stats.pages = pages_.load(std::memory_order_relaxed);
  stats.same_filled_pages = same_filled_.load(std::memory_order_relaxed);
  stats.payload = Bytes(payload_.load(std::memory_order_relaxed));
  stats.memory = arena_.memory();
  stats.limit = arena_.limit();
  stats.metadata = arena_.metadata() +
                   Bytes(sizeof(WordTable) + kHeaderSize * (stats.pages - stats.same_filled_pages));
  stats.rejected = rejected_.load(std::memory_order_relaxed);
  stats.corrupt = corrupt_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace fileballoon
