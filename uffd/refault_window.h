// RefaultWindow: how many pages one refault should bring back. Linux fills memory in runs (page
// cache reads, the buddy allocator's splits and per-CPU lists, which also hand pages out
// backwards), so a fault next to the last answer of a stream doubles that stream's window, in
// either direction; any other fault starts a new stream with one page. Pure: no system calls, no
// allocation after construction, not thread-safe (each reader of the engine owns one).
#pragma once

#include <array>
#include <cstdint>

namespace fileballoon {

class RefaultWindow {
 public:
  struct Options {
    /// Longest answer, pages. 256 (1 MiB) amortises a message and an ioctl to nothing (below 3 %)
    /// while the faulting thread waits at most about 0.2 ms for the fill.
    std::uint32_t max_pages = 256;
    /// First answer of a stream that has just shown itself to be sequential.
    std::uint32_t second_pages = 8;
  };

  /// Pages [first, first+count) to answer, holding the faulting page.
  struct Answer {
    std::uint64_t first = 0;
    std::uint32_t count = 1;
  };

  struct Counters {
    std::uint64_t sequential = 0;  ///< faults that continued a stream
    std::uint64_t used = 0;  ///< pages brought in ahead, in windows whose stream went on past them
    std::uint64_t unused = 0;  ///< pages brought in ahead, in windows whose stream ended there:
                               ///< an upper bound of the wasted fills
  };

  explicit RefaultWindow(Options options) : options_(options) {}
  RefaultWindow() : RefaultWindow(Options{}) {}

  /// The answer wanted for a fault on `page` of RAM object `object`. The caller clips it to what
  /// is absent and tells the result to filled().
  [[nodiscard]] Answer next(std::uint32_t object, std::uint64_t page);

  /// What was really brought in for the last next().
  void filled(std::uint64_t first, std::uint32_t count);

  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  // Streams tracked at once: more than the vCPUs that are likely to fill memory at one moment.
  static constexpr std::size_t kStreams = 16;

  struct Stream {
    std::uint32_t object = 0;
    std::uint64_t first = 0;  // the last answer
    std::uint64_t end = 0;    // one past it; 0: slot not in use
    std::uint32_t window = 1;
    std::int8_t direction = 0;  // 0: not known yet
    std::uint64_t used_at = 0;
  };

  Stream& oldest();

  Options options_;
  std::array<Stream, kStreams> streams_{};
  Stream* last_ = nullptr;
  std::uint64_t fault_page_ = 0;
  std::uint64_t now_ = 0;
  Counters counters_;
};

}  // namespace fileballoon
