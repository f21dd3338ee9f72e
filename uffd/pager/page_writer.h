// PageWriter: the way out. Takes candidate pages, write-protects them, copies them, stores them,
// and then, for those that nobody has written meanwhile, punches the memory. A page that is written
// in between stays where it is. Zero pages are discarded without being stored. Where the store's
// medium works by itself (a disk), the next batch is protected and copied, and the one before it
// punched, while it does. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
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
    struct Place {
      std::uint32_t object = 0;
      std::uint64_t page = 0;
    };
    /// Memory that did not go: page-out on this RAM must stop.
    std::optional<Place> huge_page;
    Outcome& operator+=(const Outcome& other);
  };

  explicit PageWriter(Pager& pager) : pager_(pager) {}
  PageWriter(const PageWriter&) = delete;
  PageWriter& operator=(const PageWriter&) = delete;
  ~PageWriter() { (void)flush(); }

  /// Pages out those of `pages` (ascending, at most kBatch, all in one 2 MiB piece of `object`)
  /// that are backed. Holds the range's lock twice for some microseconds, not while it stores. What
  /// has gone by then: of this batch, or of the one before it where a disk is still at work on this
  /// one, whose outcome is the next call's or that of flush().
  [[nodiscard]] Outcome write(std::uint32_t object, std::span<const std::uint64_t> pages);
  /// Waits for the batch that is under way, if one is.
  [[nodiscard]] Outcome flush();
  /// Pages of the batch that is under way: some of them may stay where they are.
  [[nodiscard]] std::uint32_t under_way() const;

  /// Leaves in `pages` those that read as zero now: a look without protection, which says only whom
  /// to try first.
  void keep_zero(std::uint32_t object, std::vector<std::uint64_t>& pages);

 private:
  struct Run {
    std::uint64_t first = 0;
    std::uint32_t count = 0;
    std::size_t at = 0;  // index of its first page in the batch
  };

  enum class Fate : std::uint8_t { keep, rejected, zero, stored };

  // Pages on their way out.
  struct Batch {
    std::uint32_t object = 0;
    PageBuffer buffer{kBatch};
    std::vector<Run> runs;
    std::vector<PagePut> puts;
    std::array<std::uint16_t, kBatch> at{};  // of each put: the page's index in the batch
    std::array<Fate, kBatch> fate{};         // of each page
    std::array<Slot, kBatch> slot{};
  };

  [[nodiscard]] Batch& free_batch();
  [[nodiscard]] bool guard(Batch& batch, std::span<const std::uint64_t> pages);
  [[nodiscard]] static bool read(int fd, Batch& batch, const Run& run);
  void copy(Batch& batch);
  [[nodiscard]] bool start(Batch& batch);
  [[nodiscard]] Outcome finish(Batch& batch);
  static void note_fates(Batch& batch, Outcome& outcome);
  void commit(Batch& batch, Outcome& outcome);
  [[nodiscard]] bool ready_to_go(Batch& batch, std::uint64_t page, std::size_t at);
  void commit_run(Batch& batch, const Run& run, Outcome& outcome);
  /// Whoever was caught writing goes on; write-protection is taken away, or left to the fill.
  enum class Marks { taken, left };
  void let_go(std::uint32_t object, std::uint64_t first, std::uint64_t count, Marks marks);
  void drop(const Batch& batch, std::size_t at);

  [[nodiscard]] static bool goes(Fate fate) { return fate == Fate::zero || fate == Fate::stored; }

  Pager& pager_;
  // Made when needed: the second one only with a store that works by itself.
  std::array<std::unique_ptr<Batch>, 2> batches_;
  Batch* under_way_ = nullptr;
};

}  // namespace fileballoon
