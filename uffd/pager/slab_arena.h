// SlabArena: memory for objects of 64 bytes to a little over a page, in slabs of 64 KiB that each
// hold one size class. Waste is bounded: a class is at most 64 bytes (small objects) or 6 % (large
// ones) above its objects, and at most one 64 KiB slab per class is partly filled as long as
// nothing is freed; what frees leave behind is found by sparse_slab() and compacted by the
// compressed store. Objects keep their address until freed. Thread-safe.
//
// A large arena takes memory in blocks of 32 slabs, each a huge page where the kernel has one
// (transparent_hugepage/enabled: always or madvise): in a virtual machine without nested paging the
// first touch of a small page takes as long as compressing one. Blocks that are empty go back
// whole; of one that is not, empty slabs stay, for what comes next, while they are a small part of
// the arena.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon {

/// An object: 20 bits of slab, 10 of position in it.
struct ObjectId {
  static constexpr unsigned kIndexBits = 10;
  static constexpr unsigned kBits = 30;
  std::uint32_t value = 0;
  [[nodiscard]] constexpr std::uint32_t slab() const { return value >> kIndexBits; }
  [[nodiscard]] constexpr std::uint32_t index() const { return value & ((1U << kIndexBits) - 1); }
  [[nodiscard]] static constexpr ObjectId of(std::uint32_t slab, std::uint32_t index) {
    return {slab << kIndexBits | index};
  }
  constexpr bool operator==(const ObjectId&) const = default;
};

class SlabArena {
 public:
  static constexpr std::size_t kSlabSize = std::size_t{64} << 10;
  static constexpr std::size_t kMinObject = 64;
  static constexpr std::size_t kMaxObject = 4368;  // 15 a slab: a page and its header
  /// 2^20 slabs: 64 GiB of content a store.
  static constexpr Bytes kMaxLimit = Bytes::gib(64);

  /// Reserves address space for `limit` (clipped to kMaxLimit, rounded up to slabs); memory is
  /// taken as it is used. Throws std::system_error.
  explicit SlabArena(Bytes limit);
  SlabArena(const SlabArena&) = delete;
  SlabArena& operator=(const SlabArena&) = delete;
  ~SlabArena();

  /// Room for `size` bytes (1 … kMaxObject); nothing when the limit is reached.
  [[nodiscard]] std::optional<ObjectId> allocate(std::size_t size);
  void free(ObjectId object);
  /// False for a number that is not an allocated object: a damaged slot never leads anywhere.
  [[nodiscard]] bool is_live(ObjectId object) const;

  [[nodiscard]] std::byte* data(ObjectId object) const;
  /// Bytes available at data(); fixed while the object lives.
  [[nodiscard]] std::size_t capacity(ObjectId object) const;

  /// The slab with the most free room in the class that wastes most, if compaction would return at
  /// least one slab: its class has more than kSlack slabs' worth free and over 1/8 of its room.
  /// Nothing is allocated from that slab until it has become empty or keep() is called.
  [[nodiscard]] std::optional<std::uint32_t> sparse_slab();
  /// The slab that was opened longest ago, likewise closed for allocation.
  [[nodiscard]] std::optional<std::uint32_t> oldest_slab();
  void keep(std::uint32_t slab);
  /// Calls `visit(ObjectId, const std::byte* data)` for each object alive in `slab`, which stays
  /// alive during the call; `visit` calls nothing of the arena.
  template <class Visit>
  void for_each(std::uint32_t slab, Visit&& visit) const {
    const std::lock_guard guard(mutex_);
    const Slab& it = slabs_[slab];
    if (it.size_class == kUnused) {
      return;
    }
    for (std::uint32_t index = 0; index < classes_[it.size_class].per_slab; ++index) {
      if ((live_bits(it)[index / 64] >> (index % 64) & 1) != 0) {
        const ObjectId object = ObjectId::of(slab, index);
        visit(object, data(object));
      }
    }
  }

  /// Returns the memory of empty slabs to the kernel, but for some in huge pages: a 16th of what is
  /// in use and a block.
  void trim();

  /// Memory of slabs that hold objects or have not been trimmed since, and of the huge pages that
  /// they lie in.
  [[nodiscard]] Bytes memory() const;
  [[nodiscard]] Bytes limit() const { return Bytes(most_slabs_ * kSlabSize); }
  [[nodiscard]] Bytes metadata() const;

 private:
  static constexpr std::uint32_t kNil = 0xFFFFFFFF;
  static constexpr std::uint8_t kUnused = 0xFF;
  static constexpr std::uint64_t kSlack = 2;

  struct Slab {
    std::uint32_t previous = kNil;  // in its class's list of slabs with room
    std::uint32_t next = kNil;      // in that list, or in a list of empty slabs
    std::uint32_t birth = 0;        // counts openings; wraps after 2^32 slabs
    std::uint16_t used = 0;
    std::uint8_t size_class = kUnused;
    bool listed : 1 = false;
    bool closed : 1 = false;
    // One bit an object: `word` where 64 are enough, which is so for pages that compress 4:1 or
    // less; else an array that the slab owns while it is open.
    union {
      std::uint64_t word = 0;
      std::uint64_t* words;
    } live;
  };
  static_assert(sizeof(Slab) == 24, "counts for every 64 KiB of content");
  static constexpr std::uint32_t kBlockSlabs = 32;
  static constexpr std::size_t kBlockSize = kBlockSlabs * kSlabSize;
  static_assert(kBlockSize == std::size_t{2} << 20, "a huge page");
  // From 16 MiB on, of arenas of 64: a block is then at most an eighth of what there is.
  static constexpr std::uint64_t kBlocksFrom = 256;
  static constexpr std::uint64_t kBlocksFromLimit = 1024;
  // A huge page that took so long had to be made free first: the next ones are not asked for.
  static constexpr std::chrono::milliseconds kSlowBlock{20};
  static constexpr unsigned kBlocksToSkip = 16;
  struct Block {
    std::uint32_t next = kNil;  // in the list of bare blocks
    std::uint8_t empty = 0;     // slabs
    bool huge = false;          // one page, as far as is known
    bool bare = false;          // listed: nothing in it, nothing behind it
  };
  // Slabs behind which memory is to be put.
  struct Bare {
    std::uint32_t first = 0;
    std::uint32_t slabs = 0;
  };
  struct SizeClass {
    std::uint32_t size = 0;
    std::uint32_t per_slab = 0;
    std::uint32_t with_room = kNil;
    std::uint64_t slabs = 0;
    std::uint64_t used = 0;
  };

  [[nodiscard]] std::uint64_t* live_bits(Slab& slab) {
    return classes_[slab.size_class].per_slab <= 64 ? &slab.live.word : slab.live.words;
  }
  [[nodiscard]] const std::uint64_t* live_bits(const Slab& slab) const {
    return classes_[slab.size_class].per_slab <= 64 ? &slab.live.word : slab.live.words;
  }
  [[nodiscard]] std::uint8_t class_of(std::size_t size) const;
  [[nodiscard]] std::optional<ObjectId> take(std::uint8_t size_class, Bare& bare);
  [[nodiscard]] std::uint32_t open_slab(std::uint8_t size_class, Bare& bare);
  [[nodiscard]] std::uint32_t empty_slab(Bare& bare);
  [[nodiscard]] bool open_block(Bare& bare);
  void back(const Bare& bare);
  [[nodiscard]] bool asks_for_huge_page();
  [[nodiscard]] std::uint64_t return_blocks(std::uint32_t& list, bool has_memory);
  void return_slabs(std::uint64_t most_kept);
  [[nodiscard]] std::byte* at(std::uint32_t slab) const {
    return base_ + std::size_t{slab} * kSlabSize;
  }
  /// With what is lost in front of the first huge page's boundary.
  [[nodiscard]] std::size_t mapped_size() const { return most_slabs_ * kSlabSize + kBlockSize; }
  void close_empty(std::uint32_t slab);
  void link(std::uint32_t slab);
  void unlink(std::uint32_t slab);

  std::byte* mapping_ = nullptr;
  std::byte* base_ = nullptr;  // in it, at a huge page's boundary
  mutable std::mutex mutex_;   // innermost: nothing else is taken under it
  std::vector<SizeClass> classes_;
  std::array<std::uint8_t, kMaxObject / 16 + 1> class_by_size_{};
  std::uint64_t most_slabs_ = 0;
  // Those that were ever used, so that an empty store takes next to nothing. Never moves: there is
  // room for all from the start, and an object's slab is read without the lock.
  std::vector<Slab> slabs_;
  std::vector<Block> blocks_;     // of these slabs
  std::uint32_t dirty_ = kNil;    // empty, memory still there
  std::uint32_t trimmed_ = kNil;  // empty, memory returned
  std::uint32_t bare_ = kNil;     // blocks
  unsigned blocks_to_skip_ = 0;
  std::uint64_t memory_slabs_ = 0;
  std::uint64_t bit_words_ = 0;  // in arrays
  std::uint32_t births_ = 0;
};

}  // namespace fileballoon
