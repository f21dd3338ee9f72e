// FillLimit: the most host memory that a VM's RAM may take, enforced where memory comes from: at
// the fault. While the RAM takes that much, the fault engine lets faults on missing pages wait
// until page-out has made room, so that a guest which fills memory faster than the host can react
// does not take what belongs to others. No fault waits longer than kLongestHold: who sets a limit
// that cannot be kept makes a guest slow, and never stops it. Thread-safe; nothing here blocks or
// allocates after construction.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon {

class FillLimit {
 public:
  /// About what a guest takes for a slow disk; soft lockup detectors begin at 10 s.
  static constexpr std::chrono::milliseconds kLongestHold{1000};
  /// Pages handed out after one look at what the RAM takes (fstat(2) costs a tenth of a fault).
  /// Each reader of the engine may go past the limit by so many, 256 KiB.
  static constexpr std::uint64_t kCredit = 64;

  /// `objects`: descriptors of the RAM's shared memory objects, which outlive this.
  explicit FillLimit(std::vector<int> objects) : objects_(std::move(objects)) {}

  /// Nothing: no limit. Faults that wait are let go within a millisecond.
  void set(std::optional<Bytes> most);
  /// How many of `wanted` pages may be filled now; 0: the fault has to wait.
  [[nodiscard]] std::uint32_t admit(std::uint32_t wanted);
  /// Whether a fault had to wait since the last call.
  [[nodiscard]] bool take_waiting() { return waiting_.exchange(false, std::memory_order_relaxed); }
  /// Faults that had to wait, since the start; the engine counts them.
  [[nodiscard]] std::uint64_t held() const { return held_.load(std::memory_order_relaxed); }
  void count_held() { held_.fetch_add(1, std::memory_order_relaxed); }
  /// Host memory that the RAM takes now: allocated blocks, as the kernel counts them.
  [[nodiscard]] Bytes footprint() const;

 private:
  static constexpr std::uint64_t kNone = ~0ULL;

  std::vector<int> objects_;
  std::atomic<std::uint64_t> most_{kNone};  // bytes
  std::atomic<std::uint64_t> credit_{0};    // pages
  std::atomic<bool> waiting_{false};
  std::atomic<std::uint64_t> held_{0};
};

}  // namespace fileballoon
