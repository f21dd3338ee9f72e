// LatencyHistogram: how long things took, in logarithmic buckets with 16 steps per power of two
// (at most 6.25 % error), like an HDR histogram. add() is one relaxed atomic increment: it fits on
// the fault path, and any thread may read while others add.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

namespace fileballoon {

class LatencyHistogram {
 public:
  void add(std::chrono::nanoseconds duration) {
    const auto count = duration.count();
    buckets_[index(count > 0 ? static_cast<std::uint64_t>(count) : 0)].fetch_add(
        1, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t count() const {
    std::uint64_t sum = 0;
    for (const auto& bucket : buckets_) {
      sum += bucket.load(std::memory_order_relaxed);
    }
    return sum;
  }

  /// The upper edge of the bucket that holds quantile `q` (0 to 1); zero where nothing was added.
  [[nodiscard]] std::chrono::nanoseconds quantile(double q) const {
    const std::uint64_t total = count();
    if (total == 0) {
      return {};
    }
    const auto wanted = static_cast<std::uint64_t>(q * static_cast<double>(total - 1)) + 1;
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i].load(std::memory_order_relaxed);
      if (seen >= wanted) {
        return std::chrono::nanoseconds(upper_edge(i));
      }
    }
    return std::chrono::nanoseconds(upper_edge(buckets_.size() - 1));
  }

 private:
  static constexpr unsigned kStepBits = 4;
  static constexpr std::uint64_t kSteps = 1U << kStepBits;
  static constexpr unsigned kMaxBit = 40;  // 18 minutes; longer ones land in the last bucket

  [[nodiscard]] static std::size_t index(std::uint64_t ns) {
    if (ns < kSteps) {
      return ns;
    }
    if (ns >> kMaxBit != 0) {
      ns = (1ULL << kMaxBit) - 1;
    }
    const unsigned top = static_cast<unsigned>(std::bit_width(ns)) - 1;
    const std::uint64_t step = (ns >> (top - kStepBits)) - kSteps;
    return kSteps + (top - kStepBits) * kSteps + step;
  }

  [[nodiscard]] static std::uint64_t upper_edge(std::size_t i) {
    if (i < kSteps) {
      return i;
    }
    const std::uint64_t octave = (i - kSteps) / kSteps;
    const std::uint64_t step = (i - kSteps) % kSteps;
    return ((kSteps + step + 1) << octave) - 1;
  }

  std::array<std::atomic<std::uint64_t>, kSteps + (kMaxBit - kStepBits) * kSteps> buckets_{};
};

}  // namespace fileballoon
