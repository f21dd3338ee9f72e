// Same-filled pages: one 8-byte word repeated 512 times (guests have many: freshly poisoned slabs,
// cleared bitmaps). They are kept as a reference to a counted word and take no content memory at
// all. Zero pages never come here: the pager discards them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace fileballoon {

/// The word that fills the page at `page` (8-byte aligned), if one does. Looks at two words of most
/// other pages.
[[nodiscard]] std::optional<std::uint64_t> same_filled(const std::byte* page);

/// Fills one page with `word`.
void fill_page(std::byte* page, std::uint64_t word);

/// Distinct words with use counts. Bounded: a guest that fills pages with ever new words is stored
/// the ordinary way after kCapacity of them. Thread-safe.
class WordTable {
 public:
  static constexpr std::size_t kCapacity = 1024;

  /// Counts a use of `word` and gives its index; nothing if the table is full.
  [[nodiscard]] std::optional<std::uint32_t> acquire(std::uint64_t word);
  void release(std::uint32_t index);
  /// `index` must be in use.
  [[nodiscard]] std::uint64_t word(std::uint32_t index) const;

 private:
  struct Entry {
    std::uint64_t word = 0;
    std::uint32_t uses = 0;
  };
  // Longest probe. A word is looked for in the kProbes places after its hash, free ones included,
  // so that a release needs no tombstone.
  static constexpr std::size_t kProbes = 16;

  mutable std::mutex mutex_;  // innermost
  std::array<Entry, kCapacity> entries_{};
};

}  // namespace fileballoon
