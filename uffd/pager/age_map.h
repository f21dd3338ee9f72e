// AgeMap: for every page, how many looks ago it was last seen in use: 0 (just now) to 15 (that many
// looks, or more). Half a byte a page. Thread-safe: the fault path makes pages young while the
// pager ages others.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "fileballoon/bytes.h"

namespace fileballoon {

class AgeMap {
 public:
  static constexpr unsigned kOldest = 15;

  explicit AgeMap(std::uint64_t pages)
      : bytes_((pages + 1) / 2), ages_(std::make_unique<std::atomic<std::uint8_t>[]>(bytes_)) {}

  [[nodiscard]] unsigned age(std::uint64_t page) const {
    return ages_[page / 2].load(std::memory_order_relaxed) >> shift(page) & 15U;
  }
  void set(std::uint64_t page, unsigned age) {
    std::atomic<std::uint8_t>& byte = ages_[page / 2];
    std::uint8_t old = byte.load(std::memory_order_relaxed);
    const auto mask = static_cast<std::uint8_t>(15U << shift(page));
    const auto bits = static_cast<std::uint8_t>(age << shift(page));
    while (!byte.compare_exchange_weak(old, static_cast<std::uint8_t>((old & ~mask) | bits),
                                       std::memory_order_relaxed)) {
    }
  }
  void grow_older(std::uint64_t page) { set(page, std::min(age(page) + 1, kOldest)); }

  [[nodiscard]] Bytes memory() const { return Bytes(bytes_); }

 private:
  [[nodiscard]] static unsigned shift(std::uint64_t page) { return page % 2 * 4; }

  std::uint64_t bytes_;
  std::unique_ptr<std::atomic<std::uint8_t>[]> ages_;
};

}  // namespace fileballoon
