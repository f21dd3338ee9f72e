// Bytes: an amount of memory, as a type. Sizes that users type ("600M", "25%") become Bytes here
// and are printed here, so every program accepts and shows the same spelling. Pure; thread-safe.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fileballoon/result.h"

namespace fileballoon {

/// The page size of every guest this project serves (x86-64 base pages), bytes.
inline constexpr std::uint64_t kPageSize = 4096;

/// An amount of memory in bytes.
class Bytes {
 public:
  constexpr Bytes() = default;
  constexpr explicit Bytes(std::uint64_t count) : count_(count) {}

  /// `n` base pages.
  [[nodiscard]] static constexpr Bytes pages(std::uint64_t n) { return Bytes(n * kPageSize); }
  [[nodiscard]] static constexpr Bytes mib(std::uint64_t n) { return Bytes(n << 20); }
  [[nodiscard]] static constexpr Bytes gib(std::uint64_t n) { return Bytes(n << 30); }

  [[nodiscard]] constexpr std::uint64_t count() const { return count_; }
  /// Whole pages contained, rounded down.
  [[nodiscard]] constexpr std::uint64_t whole_pages() const { return count_ / kPageSize; }
  [[nodiscard]] constexpr double as_mib() const {
    return static_cast<double>(count_) / static_cast<double>(1U << 20);
  }
  /// Rounded down to a page boundary.
  [[nodiscard]] constexpr Bytes page_floor() const { return pages(whole_pages()); }

  constexpr auto operator<=>(const Bytes&) const = default;
  constexpr Bytes& operator+=(Bytes other) {
    count_ += other.count_;
    return *this;
  }
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return a += b; }
  /// Saturating: memory amounts never go below zero.
  friend constexpr Bytes operator-(Bytes a, Bytes b) {
    return Bytes(a.count_ > b.count_ ? a.count_ - b.count_ : 0);
  }

 private:
  std::uint64_t count_ = 0;
};

/// Parses what a user typed: a decimal number with an optional fraction, then nothing or B (bytes),
/// K/M/G/T (binary; "KiB", "kb" and the like are accepted too), or "%" of `whole` where one is
/// given. Fails, naming the text and the accepted forms, on anything else and on overflow.
[[nodiscard]] Result<Bytes> parse_size(std::string_view text,
                                       std::optional<Bytes> whole = std::nullopt);

/// Shortest exact-enough print: "600 MiB", "1.5 GiB", "0 B". At most one decimal.
[[nodiscard]] std::string to_string(Bytes bytes);

}  // namespace fileballoon
