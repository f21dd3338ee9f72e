// FaultEngine: answers the faults of a watched VM. Each reader thread takes all waiting messages
// of a shard in one read, resolves ranges instead of pages where a stream of faults is
// sequential, spins for a while after work and then sleeps. On the way from a message to its answer
// nothing is allocated, nothing is logged, and no lock is waited for: a range that is being
// discarded at that moment is put aside and tried again. Deflation is reported by counters and a
// ring that the control plane drains when it likes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "uffd/cpu_spread.h"
#include "uffd/latency_histogram.h"
#include "uffd/refault_window.h"
#include "uffd/watched_ram.h"

namespace fileballoon {

/// How absent pages are brought back. docs/userfaultfd.md has the measurements.
enum class Resolver {
  zeropage,   ///< UFFDIO_ZEROPAGE over the range: allocated, mapped and woken in one call; on
              ///< private memory UFFDIO_COPY of zeros, since ZEROPAGE maps the shared zero page
              ///< there and the first write would fault once more
  populate,   ///< MADV_POPULATE_WRITE on a mapping of our own, then WAKE: the VMM maps by itself
  fallocate,  ///< fallocate(2) on the object, then WAKE
  continue_,  ///< fallocate(2), then UFFDIO_CONTINUE (needs WatchedRam::Options::minor)
};

[[nodiscard]] const char* to_string(Resolver resolver);

/// Where the content of `paged` pages comes from (the pager). Called by reader threads, under the
/// range's lock.
class PageSource {
 public:
  struct Content {
    enum class Status {
      ready,  ///< `data` holds `count` pages from `first` on, until the thread's next call
      later,  ///< it cannot be had now; the fault is tried again, some hundred times a second
      lost,   ///< it can never be had again: the page is to be poisoned
    };
    Status status = Status::later;
    const std::byte* data = nullptr;
    std::uint64_t first = 0;
    std::uint32_t count = 0;
    bool slept = false;  ///< the thread slept until it had the page
  };
  PageSource() = default;
  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;
  virtual ~PageSource() = default;
  /// The content of page `fault` and, as it likes, of more of the `count` pages from `first` on,
  /// which are all paged and hold `fault`.
  [[nodiscard]] virtual Content fetch(std::uint32_t object, std::uint64_t first,
                                      std::uint32_t count, std::uint64_t fault) = 0;
  /// These pages are in the guest's memory now: their stored content is of no use any more.
  virtual void filled(std::uint32_t object, std::uint64_t first, std::uint32_t count) = 0;
};

/// Snapshot of the engine's counters since start.
struct EngineStats {
  std::uint64_t missing_faults = 0;  ///< messages about missing pages
  std::uint64_t minor_faults = 0;
  std::uint64_t write_protect_faults = 0;
  std::uint64_t shared_answers = 0;   ///< faults already answered by an earlier one's range
  std::uint64_t sequential = 0;       ///< faults that continued a stream
  std::uint64_t pages_filled = 0;     ///< absent pages brought back
  std::uint64_t window_used = 0;      ///< pages brought in ahead that the stream went past
  std::uint64_t window_unused = 0;    ///< pages brought in ahead where the stream ended
  std::uint64_t content_pages = 0;    ///< pages filled from a PageSource
  std::uint64_t poisoned = 0;         ///< pages whose content is lost, made to raise SIGBUS
  std::uint64_t foreign_faults = 0;   ///< missing pages that nobody here discarded
  std::uint64_t already_present = 0;  ///< EEXIST: someone was faster
  std::uint64_t deferred = 0;         ///< put aside: range locked, or EAGAIN
  std::uint64_t no_memory = 0;        ///< ENOMEM while filling
  std::uint64_t vanished = 0;         ///< fault in a range that is not mapped any more
  std::uint64_t remove_events = 0;
  std::uint64_t reads = 0;                               ///< read(2) calls that returned messages
  std::uint64_t sleeps = 0;                              ///< times a reader went to sleep
  std::chrono::nanoseconds p50{}, p90{}, p99{}, p999{};  ///< message read to thread woken
};

class FaultEngine {
 public:
  struct Options {
    Resolver resolver = Resolver::zeropage;
    RefaultWindow::Options window;
    /// Reader threads; 0: one per shard, at most one per CPU.
    unsigned readers = 0;
    /// Longest time a reader looks for messages before it sleeps. Covers the gap between two faults
    /// of a thread that fills memory; the reader shortens it by itself where it does not pay. Zero
    /// where only one CPU is usable.
    std::chrono::microseconds max_spin{100};
  };

  /// `ram` must outlive the engine; `source` is needed where pages are `paged`.
  FaultEngine(WatchedRam& ram, Options options, PageSource* source = nullptr);
  FaultEngine(const FaultEngine&) = delete;
  FaultEngine& operator=(const FaultEngine&) = delete;
  /// Stops the readers. Faults then wait until the userfaultfds are closed or read by another.
  ~FaultEngine();

  [[nodiscard]] EngineStats stats() const;
  /// Pages brought back since start, paged-in ones included.
  [[nodiscard]] std::uint64_t refaulted_pages() const;
  /// Of these, pages that the guest took back from its balloon: implicit deflation.
  [[nodiscard]] std::uint64_t deflated_pages() const;

  /// Ranges refaulted since the last call, oldest first, to `visit(object, HostRange)`. Returns
  /// false where some were dropped because nobody drained in time (look at FrameMap then). One
  /// caller at a time.
  bool drain(const std::function<void(std::uint32_t, HostRange)>& visit);
  /// Readable (eventfd) when there is something to drain; reset by drain().
  [[nodiscard]] int deflation_fd() const { return deflation_.get(); }

  /// False when a reader has given up because its userfaultfd is closed or the process is gone.
  [[nodiscard]] bool serving() const;

 private:
  class Reader;
  struct Shard;

  [[nodiscard]] bool has_deferred() const;

  WatchedRam& ram_;
  Options options_;
  PageSource* source_;
  UniqueFd stop_;
  UniqueFd deflation_;
  std::atomic<bool> deflation_signalled_{false};
  std::atomic<std::chrono::steady_clock::duration> last_active_{};  // of any reader
  std::atomic<unsigned> answering_{0};                              // readers
  std::atomic<bool> waits_asleep_{false};  // who answered last slept for a disk meanwhile
  // Who answered the last message, if it had just been given its CPU back.
  std::atomic<const Reader*> at_hand_{nullptr};
  CpuSpread spread_;  // of the readers
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::unique_ptr<Reader>> readers_;
};

}  // namespace fileballoon
