// PageWriter: the way out. Takes candidate pages, write-protects them, copies them, stores them,
// and then, for those that nobody has written meanwhile, punches the memory. A page that is written
// in between stays where it is. Zero pages are discarded without being stored. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "uffd/pager/page_buffer.h"
#include "uffd/pager/pager.h"

namespace fileballoon {

class PageWriter {
 public:
  /// Pages in one batch: a whole piece. Writing to a disk gains up to this length; compressing
  /// loses a little to the L2 cache. Faults do not wait for a batch: its range is not locked while
  /// it is stored.
  static constexpr std::size_t kBatch = 512;

  struct Outcome {
    std::uint32_t stored = 0;
    std::uint32_t zero = 0;
    std::uint32_t raced = 0;  ///< written meanwhile, or changed by another owner
    std::uint32_t rejected =
        0;  ///< not worth storing; made young, so that it is not tried again soon
    /// ok, or why pages were left: full, over_budget, io_error.
    StoreStatus status = StoreStatus::ok;
    bool huge_page = false;  ///< memory did not go: page-out on this RAM must stop
  };

  explicit PageWriter(Pager& pager) : pager_(pager), buffer_(kBatch) {}

  /// Pages out those of `pages` (ascending, at most kBatch, all in one 2 MiB piece of `object`)
  /// that are backed. Holds the range's lock twice for some microseconds, not while it stores.
  [[nodiscard]] Outcome write(std::uint32_t object, std::span<const std::uint64_t> pages);

  /// Leaves in `pages` those that read as zero now: a look without protection, which says only whom
  /// to try first.
  void keep_zero(std::uint32_t object, std::vector<std::uint64_t>& pages);

 private:
  struct Run {
    std::uint64_t first = 0;
    std::uint32_t count = 0;
    std::size_t at = 0;  // index of its first page in the batch
  };

  [[nodiscard]] bool guard(std::uint32_t object, std::span<const std::uint64_t> pages);
  [[nodiscard]] bool read(int fd, const Run& run);
  void store(std::uint32_t object, Outcome& outcome);
  void commit(std::uint32_t object, Outcome& outcome);
  [[nodiscard]] bool ready_to_go(std::uint32_t object, std::uint64_t page, std::size_t at);
  void commit_run(std::uint32_t object, const Run& run, Outcome& outcome);
  /// Whoever was caught writing goes on; write-protection is taken away, or left to the fill.
  enum class Marks { taken, left };
  void let_go(std::uint32_t object, std::uint64_t first, std::uint64_t count, Marks marks);
  void drop(std::size_t at);

  enum class Fate : std::uint8_t { keep, rejected, zero, stored };
  [[nodiscard]] static bool goes(Fate fate) { return fate == Fate::zero || fate == Fate::stored; }

  Pager& pager_;
  PageBuffer buffer_;
  std::vector<Run> runs_;
  std::vector<PagePut> puts_;
  std::array<Fate, kBatch> fate_{};
  std::array<Slot, kBatch> slot_{};
};

}  // namespace fileballoon
