// WatchedRam: a guest's RAM with the userfaultfds that watch it, what is believed of every page,
// and the one lock per range under which every discard and every fill is done. It knows where each
// page of each RAM object appears in the VMM's address space and which userfaultfd (shard) watches
// it there. The fault engine and the guarded discarder share one WatchedRam; nothing in it
// allocates after create().
//
// Lock order: a range lock is a leaf. Its holder makes system calls on this RAM and takes nothing
// else; the fault path only ever tries it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "fileballoon/frame_map.h"
#include "uffd/fill_limit.h"
#include "uffd/guest_ram.h"
#include "uffd/range_lock.h"
#include "uffd/userfaultfd.h"

namespace fileballoon {

/// One RAM object as the watcher needs it.
struct RamObject {
  int fd =
      -1;  ///< shared memory object; -1: private anonymous memory (of this process, or a VMM's)
  Bytes size;
  std::vector<VmmMapping> mappings;  ///< where it lies in the watched process
  /// For private anonymous memory of this very process: it can be discarded by madvise(2).
  bool local = false;
  /// `local` memory that is discarded by MADV_FREE: pages stay until the host needs them, and stay
  /// write-protected until they are written again.
  bool lazy = false;
};

/// Who answers a missing page.
enum class RefaultMode {
  kernel,  ///< the kernel does; only write-protection is watched
  engine,  ///< the fault engine does
};

class WatchedRam {
 public:
  struct Options {
    RefaultMode mode = RefaultMode::engine;
    /// Watch pages that are in the page cache and not mapped, too: what the CONTINUE resolver
    /// needs.
    bool minor = false;
    /// The maker of the userfaultfd has registered the ranges already (Firecracker).
    bool registered = false;
    /// State of pages at the start where the kernel cannot be asked (anonymous memory elsewhere).
    FrameState initial = FrameState::backed;
    /// Watch for write-protection (needed by guarded discards).
    bool write_protect = true;
  };

  /// A part of a RAM object in the watched address space, watched by one shard.
  struct Region {
    AddressRange where;
    std::uint32_t object = 0;
    HostOffset offset;  ///< of where.start in the object
    std::uint32_t shard = 0;
    [[nodiscard]] std::uint64_t page_of(std::uint64_t address) const {
      return (offset.bytes() + (address - where.start)) / kPageSize;
    }
    [[nodiscard]] std::uint64_t address_of(std::uint64_t page) const {
      return where.start + (page * kPageSize - offset.bytes());
    }
  };

  /// Registers all mappings of `objects`, divided among `shards` by address. Holes that the kernel
  /// knows of (SEEK_DATA) start as absent. On error everything is unregistered again.
  [[nodiscard]] static Result<std::unique_ptr<WatchedRam>> create(std::vector<RamObject> objects,
                                                                  std::vector<Userfaultfd> shards,
                                                                  Options options);
  /// The objects of `ram`; `ram` keeps the descriptors and must outlive what is made of them.
  [[nodiscard]] static std::vector<RamObject> objects_of(const GuestRam& ram);

  WatchedRam(const WatchedRam&) = delete;
  WatchedRam& operator=(const WatchedRam&) = delete;
  /// Unregisters what create() registered (waking all waiters) and closes.
  ~WatchedRam();
  /// The destructor unregisters nothing: another process holds the userfaultfds open, and the
  /// kernel must not answer in our place.
  void leave_registered() { options_.registered = true; }

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] std::span<const RamObject> objects() const { return objects_; }
  [[nodiscard]] std::span<const Region> regions() const { return regions_; }
  [[nodiscard]] std::span<const Userfaultfd> shards() const { return shards_; }
  [[nodiscard]] const Userfaultfd& shard_of(const Region& region) const {
    return shards_[region.shard];
  }
  [[nodiscard]] FrameMap& frames(std::uint32_t object) { return *frames_[object]; }
  [[nodiscard]] const FrameMap& frames(std::uint32_t object) const { return *frames_[object]; }
  [[nodiscard]] RangeLocks& locks() { return locks_; }
  /// How much host memory this RAM may take; none unless somebody sets one.
  [[nodiscard]] FillLimit& fill_limit() { return *fill_limit_; }

  /// The region that holds `address`, or nullptr. No allocation.
  [[nodiscard]] const Region* find(std::uint64_t address) const;

  /// Calls visit(region, AddressRange) for every place where a part of `range` of `object` appears.
  template <class Visit>
  void for_each_place(std::uint32_t object, HostRange range, Visit&& visit) const {
    for (const Region& region : regions_) {
      if (region.object != object) {
        continue;
      }
      const std::uint64_t first = std::max(region.offset.bytes(), range.start.bytes());
      const std::uint64_t end =
          std::min(region.offset.bytes() + region.where.size.count(), range.end().bytes());
      if (first < end) {
        visit(region, AddressRange{region.where.start + (first - region.offset.bytes()),
                                   Bytes(end - first)});
      }
    }
  }

  /// The VMM has unmapped or remapped a watched part of `object`: its pages cannot be guarded any
  /// more. Sticky; discards of the object are refused from then on.
  void mark_lost(std::uint32_t object) { lost_[object].store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool lost(std::uint32_t object) const {
    return lost_[object].load(std::memory_order_relaxed);
  }

 private:
  WatchedRam(std::vector<RamObject> objects, std::vector<Userfaultfd> shards, Options options);
  [[nodiscard]] Result<void> watch_all();
  void build_regions();
  void learn_holes();
  void learn_absent(std::uint32_t object);

  std::vector<RamObject> objects_;
  std::vector<Userfaultfd> shards_;
  Options options_;
  std::vector<Region> regions_;  // ascending by address
  std::vector<std::unique_ptr<FrameMap>> frames_;
  std::unique_ptr<std::atomic<bool>[]> lost_;
  RangeLocks locks_;
  std::unique_ptr<FillLimit> fill_limit_;
};

}  // namespace fileballoon
