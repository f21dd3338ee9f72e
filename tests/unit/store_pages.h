// Pages with known content for the tests and the benchmark of the page stores.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "fileballoon/bytes.h"
#include "uffd/pager/page_buffer.h"
#include "uffd/pager/page_store.h"

namespace fileballoon::testing {

/// Fills `page` from `seed`: fields of 16 to 64 random bytes between repeats of 48 to 160 earlier
/// ones, as arrays of records and text have them. It compresses 3:1 with lz4.
inline void fill_compressible(std::byte* page, std::uint64_t seed) {
  std::mt19937_64 random(seed * 0x9E3779B97F4A7C15ULL + 1);
  constexpr std::size_t kWords = kPageSize / sizeof(std::uint64_t);
  std::uint64_t words[kWords];
  for (std::size_t i = 0; i < kWords;) {
    const std::uint64_t dice = random();
    for (std::size_t fresh = 2 + dice % 7; fresh > 0 && i < kWords; --fresh) {
      words[i++] = random();
    }
    const std::size_t length = 6 + (dice >> 8) % 15;
    const std::size_t from = (dice >> 20) % i;
    for (std::size_t j = 0; j < length && i < kWords; ++j, ++i) {
      words[i] = words[from + j % (i - from)];
    }
  }
  std::memcpy(page, words, kPageSize);
}

/// Fills `page` with noise, which does not compress.
inline void fill_random(std::byte* page, std::uint64_t seed) {
  std::mt19937_64 random(seed + 77);
  for (std::size_t i = 0; i < kPageSize; i += sizeof(std::uint64_t)) {
    const std::uint64_t word = random();
    std::memcpy(page + i, &word, sizeof(word));
  }
}

/// Some pages with keys 0, 1, 2, …, ready to be put.
struct Pages {
  explicit Pages(std::size_t count) : buffer(count), puts(count) {
    for (std::size_t i = 0; i < count; ++i) {
      puts[i].key = PageKey{static_cast<std::uint32_t>(i)};
      puts[i].data = buffer.page(i);
    }
  }
  static Pages compressible(std::size_t count, std::uint64_t seed = 1) {
    Pages pages(count);
    for (std::size_t i = 0; i < count; ++i) {
      fill_compressible(pages.buffer.page(i), seed * 1000003 + i);
    }
    return pages;
  }
  static Pages random(std::size_t count, std::uint64_t seed = 1) {
    Pages pages(count);
    for (std::size_t i = 0; i < count; ++i) {
      fill_random(pages.buffer.page(i), seed * 1000003 + i);
    }
    return pages;
  }

  /// Fetches page `i` back and compares it.
  [[nodiscard]] StoreStatus fetch(PageStore& store, std::size_t i) {
    const StoreStatus status = get_page(store, puts[i].key, puts[i].slot, back.page(0));
    same = status == StoreStatus::ok && std::memcmp(back.page(0), puts[i].data, kPageSize) == 0;
    return status;
  }

  PageBuffer buffer;
  std::vector<PagePut> puts;
  PageBuffer back{1};
  bool same = false;
};

/// Follows moves of slots as the pager would; for one thread.
class Owner final : public SlotOwner {
 public:
  explicit Owner(std::vector<PagePut>& puts) : puts_(puts) {}
  bool with(PageKey key, Slot slot, const std::function<Slot()>& move) override {
    if (puts_[key.index].slot != slot) {
      return false;
    }
    puts_[key.index].slot = move();
    return true;
  }

 private:
  std::vector<PagePut>& puts_;
};

}  // namespace fileballoon::testing
