// Discarder: the one owner of all discards of a guest's RAM. It frees only pages that it has itself
// read as zero, and counts only those that really have no memory behind them afterwards. The daemon
// calls discard() for every range of a REPORT. Two owners exist: PunchDiscarder here (no
// userfaultfd: safe because a verified zero page that refaults as zero is the same page while the
// agent keeps it pinned), and the write-protecting one of the fault engine.
#pragma once

#include <cstdint>

#include "fileballoon/frame.h"
#include "uffd/guest_ram.h"
#include "uffd/range_lock.h"

namespace fileballoon {

/// What became of the pages of a range; the first three counts add up to its pages (clipped to the
/// backing; pages outside it count as `failed`).
struct DiscardOutcome {
  std::uint32_t discarded = 0;  ///< zero, and seen to have no memory behind them now
  std::uint32_t not_zero = 0;   ///< hold data; left alone
  std::uint32_t failed = 0;     ///< zero, but still backed (a huge page that would not split), or
                                ///< not readable
  std::uint32_t freed = 0;      ///< of `discarded`: those that had memory before
  DiscardOutcome& operator+=(const DiscardOutcome& other) {
    discarded += other.discarded;
    not_zero += other.not_zero;
    failed += other.failed;
    freed += other.freed;
    return *this;
  }
  bool operator==(const DiscardOutcome&) const = default;
};

class Discarder {
 public:
  Discarder() = default;
  Discarder(const Discarder&) = delete;
  Discarder& operator=(const Discarder&) = delete;
  virtual ~Discarder() = default;

  /// Verifies and discards the whole pages of `range` in backing number `backing`; `range` is page
  /// aligned. Thread-safe; blocks for the kernel's work only (about 0.3 ms for 1 MiB). Never throws
  /// for what the guest may have caused.
  [[nodiscard]] virtual DiscardOutcome discard(std::uint32_t backing, HostRange range) = 0;
};

/// Verify and punch, without write-protection.
class PunchDiscarder final : public Discarder {
 public:
  /// `ram` must outlive this.
  explicit PunchDiscarder(const GuestRam& ram) : ram_(ram) {}

  [[nodiscard]] DiscardOutcome discard(std::uint32_t backing, HostRange range) override;

 private:
  const GuestRam& ram_;
  RangeLocks locks_;
};

}  // namespace fileballoon
