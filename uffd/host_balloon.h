// HostBalloon (libfileballoon-host): the same discards and the same fault engine for a VMM that
// wants them in its own process, on private anonymous or shared guest RAM. A VMM creates one after
// it has mapped its RAM, calls give() for ranges that its guest does not need, and may read stats.
// Everything is verified here: give() frees zero pages only, however wrong its caller.
#pragma once

#include <memory>
#include <span>

#include "uffd/fault_engine.h"
#include "uffd/guarded_discard.h"

namespace fileballoon {

class HostBalloon {
 public:
  /// Guest RAM in this process.
  struct Region {
    void* address = nullptr;  ///< page aligned
    Bytes size;
    int shared_fd =
        -1;  ///< the memfd or tmpfs file mapped there from its start; -1: private memory
  };
  struct Options {
    /// Who answers the first touch of a page that was given away. `kernel` costs nothing; `engine`
    /// tells at once which pages come back (refaulted_pages(), deflation_fd()).
    RefaultMode refaults = RefaultMode::kernel;
    /// Private memory only: MADV_FREE instead of MADV_DONTNEED. It keeps the memory until the host
    /// is short of it, and costs a write-protect fault for each page that is written again, so it
    /// pays where most of what is given is soon wanted again and the host is seldom short; the
    /// measurements are in docs/userfaultfd.md.
    bool lazy = false;
    /// Userfaultfds, each with a reader: two answer a single thread faster than one does.
    unsigned shards = 2;
  };

  /// Watches `regions`; they must stay mapped as long as this lives. Needs userfaultfd (the error
  /// says what forbids it).
  [[nodiscard]] static Result<std::unique_ptr<HostBalloon>> create(std::span<const Region> regions,
                                                                   const Options& options);
  [[nodiscard]] static Result<std::unique_ptr<HostBalloon>> create(
      std::span<const Region> regions) {
    return create(regions, Options());
  }

  /// Gives the whole pages of [offset, offset+size) of region number `region` back to the host, as
  /// far as they are zero. Thread-safe. vCPUs may run on: a write at this very moment is kept.
  [[nodiscard]] DiscardOutcome give(std::uint32_t region, HostOffset offset, Bytes size) {
    return discarder_->discard(region, {offset, size});
  }

  [[nodiscard]] EngineStats stats() const { return engine_->stats(); }
  [[nodiscard]] std::uint64_t refaulted_pages() const { return engine_->refaulted_pages(); }
  /// Readable when pages came back (engine mode); see FaultEngine::drain().
  [[nodiscard]] FaultEngine& engine() { return *engine_; }

 private:
  HostBalloon() = default;
  std::vector<UniqueFd> fds_;
  std::unique_ptr<WatchedRam> ram_;
  std::unique_ptr<FaultEngine> engine_;
  std::unique_ptr<GuardedDiscarder> discarder_;
};

}  // namespace fileballoon
