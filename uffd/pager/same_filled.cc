#include "uffd/pager/same_filled.h"

#include <algorithm>
#include <cstring>

#include "fileballoon/bytes.h"

namespace fileballoon {

std::optional<std::uint64_t> same_filled(const std::byte* page) {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  std::memcpy(&first, page, sizeof(first));
  std::memcpy(&last, page + kPageSize - sizeof(last), sizeof(last));
  if (first != last || std::memcmp(page, page + sizeof(first), kPageSize - sizeof(first)) != 0) {
    return std::nullopt;
  }
  return first;
}

void fill_page(std::byte* page, std::uint64_t word) {
  std::uint64_t* words = reinterpret_cast<std::uint64_t*>(page);
  std::fill(words, words + kPageSize / sizeof(word), word);
}

std::optional<std::uint32_t> WordTable::acquire(std::uint64_t word) {
  const std::size_t home = (word * 0x9E3779B97F4A7C15ULL) >> 54;  // 10 bits: kCapacity
  const std::lock_guard guard(mutex_);
  std::optional<std::size_t> unused;
  for (std::size_t probe = 0; probe < kProbes; ++probe) {
    const std::size_t at = (home + probe) % kCapacity;
    Entry& entry = entries_[at];
    if (entry.uses > 0 && entry.word == word) {
      ++entry.uses;
      return static_cast<std::uint32_t>(at);
    }
    if (entry.uses == 0 && !unused) {
      unused = at;
    }
  }
  if (!unused) {
    return std::nullopt;
  }
  entries_[*unused] = {word, 1};
  return static_cast<std::uint32_t>(*unused);
}

void WordTable::release(std::uint32_t index) {
  const std::lock_guard guard(mutex_);
  --entries_[index].uses;
}

std::uint64_t WordTable::word(std::uint32_t index) const {
  const std::lock_guard guard(mutex_);
  return entries_[index].word;
}

}  // namespace fileballoon
