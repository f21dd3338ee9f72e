// RangeFiller: brings a range of absent pages back with as few system calls as the resolver allows,
// and deals with what the kernel may answer on the way: pages that are there already (EEXIST), a
// mapping in change (EAGAIN), one that is gone (ENOENT), no memory. Called by a reader of the fault
// engine with the range's lock held; one filler a thread.
#pragma once

#include <atomic>
#include <chrono>
#include <vector>

#include "uffd/watched_ram.h"

namespace fileballoon {

enum class Resolver;
class PageSource;

class RangeFiller {
 public:
  struct Request {
    const WatchedRam::Region* region = nullptr;
    std::uint64_t first = 0;  ///< pages of the region's object
    std::uint32_t count = 1;
    std::uint64_t fault = 0;  ///< the page that a thread waits for, inside the range
    FrameState state = FrameState::absent;
    bool minor = false;  ///< the page is in the page cache and has only to be mapped
  };
  enum class Status {
    filled,     ///< the pages below are there and their waiters are woken
    later,      ///< the mapping is changing; nothing is lost by trying again
    lost,       ///< its content cannot be had now, and it cannot be poisoned: its waiters wait
    no_memory,  ///< not even the faulting page could be filled
    gone,       ///< not mapped any more; waiters are woken
  };
  struct [[nodiscard]] Outcome {
    Status status = Status::filled;
    std::uint64_t first = 0;
    std::uint32_t count = 0;
    /// When the waiter of the fault went on, where that was before the range was full.
    std::chrono::steady_clock::time_point woken_at{};
    bool slept = false;  ///< for the content
  };
  struct Counters {
    std::atomic<std::uint64_t> pages{0}, content_pages{0}, already_present{0}, no_memory{0},
        vanished{0}, poisoned{0};
  };

  RangeFiller(WatchedRam& ram, Resolver resolver, PageSource* source);
  RangeFiller(const RangeFiller&) = delete;
  RangeFiller& operator=(const RangeFiller&) = delete;
  ~RangeFiller();

  Outcome fill(const Request& request);
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  Outcome fill_range(const Request& request);
  Outcome fill_in_pieces(const Request& request);
  Outcome fill_content(const Request& request);
  [[nodiscard]] UffdStatus fill_zeros(const Userfaultfd& uffd, AddressRange range, bool shared);
  [[nodiscard]] UffdStatus back(const Request& request, bool continue_after);

  WatchedRam& ram_;
  Resolver resolver_;
  PageSource* source_;
  std::vector<void*> own_;  // our own mapping of each object (populate), or nullptr
  void* zeros_ = nullptr;   // kPiece of zeros for COPY; the shared zero page, so it takes no memory
  Counters counters_;
};

}  // namespace fileballoon
