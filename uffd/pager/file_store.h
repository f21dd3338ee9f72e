// FileStore: pages in a file or on a block device, uncompressed, one page a slot. Writes go out in
// runs of consecutive slots, several at once, straight from the guest's memory (O_DIRECT, io_uring,
// nothing copied); each page has a 64-bit checksum in memory that every read is held against. The
// right home for pages that will not be wanted soon, or for much of them.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "uffd/pager/page_store.h"
#include "uffd/pager/slot_runs.h"
#include "uffd/pager/store_file.h"
#include "uffd/pager/uring.h"
#include "uffd/pager/wait_choice.h"
#include "uffd/pager/write_budget.h"

namespace fileballoon {

class FileStore final : public PageStore {
 public:
  /// `budget` may be null (no limit on writing) and may be shared. Throws std::system_error if
  /// io_uring is not to be had.
  FileStore(StoreFile file, std::shared_ptr<WriteBudget> budget);

  [[nodiscard]] StoreStatus put(std::span<PagePut> pages) override;
  [[nodiscard]] bool start(std::span<PagePut> pages) override;
  void finish() override;
  [[nodiscard]] StoreStatus get(std::span<PageGet> pages) override;
  void free(Slot slot) override;
  void maintain(SlotOwner& owner) override;
  [[nodiscard]] StoreStats stats() const override;

  [[nodiscard]] const StoreFile& file() const { return file_; }

 private:
  // One write is at most this long: large enough for a disk's full rate (measured: 128 KiB and up
  // are equal here), small enough for several to be on their way at once.
  static constexpr std::uint32_t kPagesPerWrite = 64;
  static constexpr unsigned kQueue = 64;
  /// A flash disk has answered by then; for a slower one it is nothing.
  static constexpr std::chrono::microseconds kSpin{300};

  struct Write {
    SlotRun run;
    std::size_t page = 0;  // the first of put()'s pages in it
  };

  [[nodiscard]] std::uint64_t& checksum(std::uint32_t slot);
  [[nodiscard]] std::span<PagePut> take_slots(std::span<PagePut> pages);
  void split(std::span<const SlotRun> runs);
  void submit_all();
  void submit(std::size_t number);
  void wait_for_some();
  void wait_for_all();
  void completed(const Write& write, int result);
  [[nodiscard]] std::int64_t read_run(std::span<iovec> into, std::uint64_t offset, bool& slept);
  [[nodiscard]] std::int64_t read_awake(std::span<iovec> into, std::uint64_t offset);
  void read_all(std::span<PageGet> pages);
  void check(PageGet& page);

  StoreFile file_;
  std::shared_ptr<WriteBudget> budget_;

  std::mutex put_mutex_;  // before slots_mutex_; never taken by get() or free()
  Uring write_ring_;
  std::vector<SlotRun> runs_;
  std::vector<Write> writes_;
  std::vector<iovec> iovecs_;
  std::span<PagePut> writing_;  // what writes_ are of
  std::size_t submitted_ = 0;   // of writes_
  std::size_t completed_ = 0;

  std::mutex read_mutex_;  // innermost; for the two below, but for what asks how to wait
  Uring read_ring_;
  WaitChoice wait_;

  mutable std::mutex slots_mutex_;  // innermost, never held across I/O
  SlotRuns slots_;
  // 8 bytes a slot, in blocks made as the file grows; a slot's owner reads it without a lock.
  static constexpr std::uint32_t kBlockSlots = 4096;
  std::vector<std::unique_ptr<std::uint64_t[]>> checksums_;

  std::atomic<std::uint64_t> io_errors_{0};
  std::atomic<std::uint64_t> corrupt_{0};
};

}  // namespace fileballoon
