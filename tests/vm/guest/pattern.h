// Pattern: page contents that can be checked, different for every page and every seed, with no
// word of zeros. A page lost to a zero page, or swapped with another, shows as an error. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fileballoon::guest {

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kWordsPerPage = kPage / sizeof(std::uint64_t);

/// SplitMix64's finalizer, odd: so no word base + i * kStep below is likely to be zero, and the
/// base of two pages never is the same by accident.
inline std::uint64_t page_seed(std::uint64_t seed, std::uint64_t page) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + page + 1;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return (x ^ (x >> 31)) | 1;
}

inline constexpr std::uint64_t kStep = 0x2545f4914f6cdd1eULL;  // even: base + i * kStep stays odd

inline void fill_page(std::uint64_t* words, std::uint64_t seed, std::uint64_t page) {
  std::uint64_t value = page_seed(seed, page);
  for (std::size_t i = 0; i < kWordsPerPage; ++i, value += kStep) words[i] = value;
}

/// True if every byte of the page is as fill_page() left it.
[[nodiscard]] inline bool check_page(const std::uint64_t* words, std::uint64_t seed,
                                     std::uint64_t page) {
  std::uint64_t value = page_seed(seed, page);
  std::uint64_t difference = 0;
  for (std::size_t i = 0; i < kWordsPerPage; ++i, value += kStep) difference |= words[i] ^ value;
  return difference == 0;
}

}  // namespace fileballoon::guest
