// GuardedDiscarder: discards under write-protection. It arms a piece in every place where the VMM
// maps it, verifies zero, discards, looks at the holes and disarms, all under the range's lock; so
// a page cannot be written between the check and the discard, and no fill can come in between. A
// writer that comes at that moment waits for its write-protect fault and then finds either its page
// as it was, or a fresh zero page: the same content.
//
// Needs a reader (FaultEngine) on the same WatchedRam: it answers the writers that were caught.
#pragma once

#include <atomic>

#include "uffd/discard_piece.h"
#include "uffd/watched_ram.h"

namespace fileballoon {

class GuardedDiscarder final : public Discarder {
 public:
  struct Options {
    /// False leaves the write-protection out. Only for the test and the benchmark that show what
    /// it is worth: guest writes are lost then.
    bool arm = true;
  };

  /// `ram` must outlive this. Throws std::system_error where /proc/self/pagemap is needed (local
  /// memory) and cannot be opened.
  GuardedDiscarder(WatchedRam& ram, Options options);
  explicit GuardedDiscarder(WatchedRam& ram) : GuardedDiscarder(ram, Options()) {}

  [[nodiscard]] DiscardOutcome discard(std::uint32_t backing, HostRange range) override;

  /// Pieces that were refused because the VMM has unmapped or remapped its RAM.
  [[nodiscard]] std::uint64_t refused_pieces() const {
    return refused_.load(std::memory_order_relaxed);
  }

 private:
  [[nodiscard]] bool arm(std::uint32_t object, HostRange piece);
  void disarm(std::uint32_t object, HostRange piece);
  [[nodiscard]] DiscardOutcome discard_shared(std::uint32_t object, HostRange piece);
  [[nodiscard]] DiscardOutcome discard_local(std::uint32_t object, HostRange piece);
  [[nodiscard]] DiscardOutcome discard_locked(std::uint32_t object, HostRange piece);

  WatchedRam& ram_;
  Options options_;
  UniqueFd pagemap_;
  std::atomic<std::uint64_t> refused_{0};
};

}  // namespace fileballoon
