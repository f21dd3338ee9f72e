// SlotRuns: which page slots of a file are free, one bit a slot. Hands out runs of consecutive
// slots after the ones it gave last, so that pages written together lie together and are read back
// in one request. Not thread-safe; the file store has a lock around it.
#pragma once

#include <cstdint>
#include <vector>

namespace fileballoon {

struct SlotRun {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  bool operator==(const SlotRun&) const = default;
};

class SlotRuns {
 public:
  /// `slots` free slots.
  explicit SlotRuns(std::uint32_t slots);

  /// Takes up to `count` slots and appends them to `out` in as few runs as can be found quickly: a
  /// run of the full length if one follows within kSearch slots of the cursor, else pieces. Returns
  /// how many were taken: fewer than `count` only if no more are free.
  std::uint32_t take(std::uint32_t count, std::vector<SlotRun>& out);
  void give_back(std::uint32_t slot);
  [[nodiscard]] bool is_taken(std::uint32_t slot) const;

  [[nodiscard]] std::uint32_t slots() const { return slots_; }
  [[nodiscard]] std::uint32_t taken() const { return taken_; }
  [[nodiscard]] std::uint64_t memory() const { return taken_bits_.size() * sizeof(std::uint64_t); }

 private:
  // 64 Ki slots: 256 MiB of file, a search of 1,024 words (about a microsecond).
  static constexpr std::uint32_t kSearch = 1U << 16;

  /// The first free run from `at`, at most `limit` long and below `end`; count 0 if none.
  [[nodiscard]] SlotRun find(std::uint32_t at, std::uint32_t end, std::uint32_t limit) const;
  void mark(SlotRun run);

  std::uint32_t slots_;
  std::uint32_t taken_ = 0;
  std::uint32_t cursor_ = 0;
  std::vector<std::uint64_t> taken_bits_;
};

}  // namespace fileballoon
