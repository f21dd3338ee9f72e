#include "uffd/pager/slab_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <system_error>

namespace fileballoon {

SlabArena::SlabArena(Bytes limit) {
  const std::uint64_t bytes =
      std::clamp<std::uint64_t>(limit.count(), kSlabSize, kMaxLimit.count());
  most_slabs_ = (bytes + kSlabSize - 1) / kSlabSize;
  slabs_.reserve(most_slabs_);
  void* mapping = ::mmap(nullptr, mapped_size(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(),
                            "reserving " + to_string(this->limit()) + " for compressed pages");
  }
  mapping_ = static_cast<std::byte*>(mapping);
  base_ = mapping_ + (kBlockSize - reinterpret_cast<std::uintptr_t>(mapping) % kBlockSize);
  // Huge pages where they are asked for, and none that come by themselves: they would put memory
  // behind slabs that were returned.
  (void)::madvise(mapping_, mapped_size(), MADV_NOHUGEPAGE);

  // Steps of 64 bytes while that wastes little of a slab's end; above, the sizes that divide a slab
  // into a whole number of objects.
  for (std::uint32_t size = kMinObject; size <= 1024; size += 64) {
    classes_.push_back({size, static_cast<std::uint32_t>(kSlabSize / size)});
  }
  for (std::uint32_t count = 63; count >= 15; --count) {
    const std::uint32_t size = static_cast<std::uint32_t>(kSlabSize / count) & ~15U;
    if (size > classes_.back().size) {
      classes_.push_back({size, count});
    }
  }
  std::uint8_t size_class = 0;
  for (std::size_t i = 0; i < class_by_size_.size(); ++i) {
    while (classes_[size_class].size < i * 16) {
      ++size_class;
    }
    class_by_size_[i] = size_class;
  }
}

SlabArena::~SlabArena() {
  for (Slab& slab : slabs_) {
    if (slab.size_class != kUnused && classes_[slab.size_class].per_slab > 64) {
      delete[] slab.live.words;
    }
  }
  ::munmap(mapping_, mapped_size());
}

std::uint8_t SlabArena::class_of(std::size_t size) const {
  return class_by_size_[(size + 15) / 16];
}

void SlabArena::link(std::uint32_t slab) {
  Slab& it = slabs_[slab];
  SizeClass& size_class = classes_[it.size_class];
  it.previous = kNil;
  it.next = size_class.with_room;
  if (it.next != kNil) {
    slabs_[it.next].previous = slab;
  }
  size_class.with_room = slab;
  it.listed = true;
}

void SlabArena::unlink(std::uint32_t slab) {
  Slab& it = slabs_[slab];
  if (!it.listed) {
    return;
  }
  if (it.previous != kNil) {
    slabs_[it.previous].next = it.next;
  } else {
    classes_[it.size_class].with_room = it.next;
  }
  if (it.next != kNil) {
    slabs_[it.next].previous = it.previous;
  }
  it.previous = it.next = kNil;
  it.listed = false;
}

/// One that holds nothing, and what of it has no memory yet; kNil where the limit is reached.
std::uint32_t SlabArena::empty_slab(Bare& bare) {
  if (dirty_ == kNil && trimmed_ == kNil && !open_block(bare)) {
    if (slabs_.size() == most_slabs_) {
      return kNil;
    }
    const auto slab = static_cast<std::uint32_t>(slabs_.size());
    if (slab % kBlockSlabs == 0) {
      blocks_.emplace_back();
    }
    slabs_.emplace_back();
    ++memory_slabs_;
    bare = {slab, 1};
    return slab;
  }
  const bool has_memory = dirty_ != kNil;
  std::uint32_t& list = has_memory ? dirty_ : trimmed_;
  const std::uint32_t slab = list;
  list = slabs_[slab].next;
  --blocks_[slab / kBlockSlabs].empty;
  if (!has_memory) {
    ++memory_slabs_;
    bare = {slab, 1};
  }
  return slab;
}

/// Lists the slabs of a block, as with memory where it is to be a huge page. False: the arena grows
/// by a slab.
bool SlabArena::open_block(Bare& bare) {
  const bool grows = bare_ == kNil;
  if (grows && (slabs_.size() % kBlockSlabs != 0 || slabs_.size() + kBlockSlabs > most_slabs_)) {
    return false;
  }
  const bool huge = asks_for_huge_page();
  if (grows && !huge) {
    return false;
  }
  std::uint32_t number = bare_;
  if (grows) {
    number = static_cast<std::uint32_t>(blocks_.size());
    blocks_.emplace_back();
    slabs_.resize(slabs_.size() + kBlockSlabs);
  } else {
    bare_ = blocks_[number].next;
  }
  const std::uint32_t first = number * kBlockSlabs;
  std::uint32_t& list = huge ? dirty_ : trimmed_;
  for (std::uint32_t slab = first + kBlockSlabs; slab-- > first;) {
    slabs_[slab].next = list;
    list = slab;
  }
  if (huge) {
    memory_slabs_ += kBlockSlabs;
    bare = {first, kBlockSlabs};
  }
  blocks_[number] = {kNil, kBlockSlabs, huge, false};
  return true;
}

/// For the next block.
bool SlabArena::asks_for_huge_page() {
  if (memory_slabs_ < kBlocksFrom || most_slabs_ < kBlocksFromLimit) {
    return false;
  }
  if (blocks_to_skip_ > 0) {
    --blocks_to_skip_;
    return false;
  }
  return true;
}

std::uint32_t SlabArena::open_slab(std::uint8_t size_class, Bare& bare) {
  const std::uint32_t slab = empty_slab(bare);
  if (slab == kNil) {
    return kNil;
  }
  Slab& it = slabs_[slab];
  SizeClass& of = classes_[size_class];
  it.previous = it.next = kNil;
  it.used = 0;
  it.size_class = size_class;
  it.closed = false;
  it.birth = births_++;
  it.live.word = 0;
  if (of.per_slab > 64) {
    const std::uint32_t words = (of.per_slab + 63) / 64;
    it.live.words = new std::uint64_t[words]();
    bit_words_ += words;
  }
  ++of.slabs;
  link(slab);
  return slab;
}

void SlabArena::close_empty(std::uint32_t slab) {
  Slab& it = slabs_[slab];
  unlink(slab);
  SizeClass& of = classes_[it.size_class];
  --of.slabs;
  if (of.per_slab > 64) {
    delete[] it.live.words;
    bit_words_ -= (of.per_slab + 63) / 64;
  }
  it.live.word = 0;
  it.size_class = kUnused;
  it.closed = false;
  it.next = dirty_;
  dirty_ = slab;
  ++blocks_[slab / kBlockSlabs].empty;
}

std::optional<ObjectId> SlabArena::allocate(std::size_t size) {
  Bare bare;
  const auto object = take(class_of(size), bare);
  if (bare.slabs > 0) {
    back(bare);
  }
  return object;
}

/// All of it in one call (5.14): page faults, one after the other beside compressing, cost a third
/// of page-out in a virtual machine. Without the lock, which page-ins take.
void SlabArena::back(const Bare& bare) {
  const std::size_t size = bare.slabs * kSlabSize;
  if (bare.slabs < kBlockSlabs) {
    (void)::madvise(at(bare.first), size, MADV_POPULATE_WRITE);
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  (void)::madvise(at(bare.first), size, MADV_HUGEPAGE);
  (void)::madvise(at(bare.first), size, MADV_POPULATE_WRITE);
  (void)::madvise(at(bare.first), size, MADV_NOHUGEPAGE);
  if (std::chrono::steady_clock::now() - start > kSlowBlock) {
    const std::lock_guard guard(mutex_);
    blocks_to_skip_ = kBlocksToSkip;
  }
}

std::optional<ObjectId> SlabArena::take(std::uint8_t size_class, Bare& bare) {
  const std::lock_guard guard(mutex_);
  SizeClass& of = classes_[size_class];
  std::uint32_t slab = of.with_room;
  if (slab == kNil) {
    slab = open_slab(size_class, bare);
    if (slab == kNil) {
      return std::nullopt;
    }
  }
  Slab& it = slabs_[slab];
  std::uint64_t* live = live_bits(it);
  for (std::uint32_t word = 0; word < (of.per_slab + 63) / 64; ++word) {
    const auto bit = static_cast<std::uint32_t>(std::countr_one(live[word]));
    const std::uint32_t index = word * 64 + bit;
    if (bit < 64 && index < of.per_slab) {
      live[word] |= 1ULL << bit;
      ++of.used;
      if (++it.used == of.per_slab) {
        unlink(slab);
      }
      return ObjectId::of(slab, index);
    }
  }
  return std::nullopt;  // not reached: a listed slab has room
}

void SlabArena::free(ObjectId object) {
  const std::lock_guard guard(mutex_);
  Slab& it = slabs_[object.slab()];
  SizeClass& of = classes_[it.size_class];
  live_bits(it)[object.index() / 64] &= ~(1ULL << (object.index() % 64));
  --of.used;
  if (--it.used == 0) {
    close_empty(object.slab());
  } else if (!it.listed && !it.closed) {
    link(object.slab());
  }
}

bool SlabArena::is_live(ObjectId object) const {
  const std::lock_guard guard(mutex_);
  if (object.slab() >= slabs_.size()) {
    return false;
  }
  const Slab& it = slabs_[object.slab()];
  return it.size_class != kUnused && object.index() < classes_[it.size_class].per_slab &&
         (live_bits(it)[object.index() / 64] >> (object.index() % 64) & 1) != 0;
}

// The class of a slab does not change while it holds an object, and the caller holds one.
std::byte* SlabArena::data(ObjectId object) const {
  return at(object.slab()) +
         std::size_t{object.index()} * classes_[slabs_[object.slab()].size_class].size;
}

std::size_t SlabArena::capacity(ObjectId object) const {
  return classes_[slabs_[object.slab()].size_class].size;
}

std::optional<std::uint32_t> SlabArena::sparse_slab() {
  const std::lock_guard guard(mutex_);
  const SizeClass* worst = nullptr;
  std::uint64_t worst_free = 0;
  for (const SizeClass& of : classes_) {
    const std::uint64_t room = of.slabs * of.per_slab;
    const std::uint64_t unused = room - of.used;
    if (unused > kSlack * of.per_slab && unused * 8 > room && unused * of.size > worst_free) {
      worst = &of;
      worst_free = unused * of.size;
    }
  }
  if (worst == nullptr) {
    return std::nullopt;
  }
  std::uint32_t emptiest = kNil;
  for (std::uint32_t slab = worst->with_room; slab != kNil; slab = slabs_[slab].next) {
    if (emptiest == kNil || slabs_[slab].used < slabs_[emptiest].used) {
      emptiest = slab;
    }
  }
  if (emptiest == kNil) {
    return std::nullopt;
  }
  unlink(emptiest);
  slabs_[emptiest].closed = true;
  return emptiest;
}

std::optional<std::uint32_t> SlabArena::oldest_slab() {
  const std::lock_guard guard(mutex_);
  std::uint32_t oldest = kNil;
  std::uint32_t oldest_age = 0;
  for (std::uint32_t slab = 0; slab < slabs_.size(); ++slab) {
    const Slab& it = slabs_[slab];
    const std::uint32_t age = births_ - it.birth;  // right across the wrap
    if (it.size_class != kUnused && !it.closed && (oldest == kNil || age > oldest_age)) {
      oldest = slab;
      oldest_age = age;
    }
  }
  if (oldest == kNil) {
    return std::nullopt;
  }
  unlink(oldest);
  slabs_[oldest].closed = true;
  return oldest;
}

void SlabArena::keep(std::uint32_t slab) {
  const std::lock_guard guard(mutex_);
  Slab& it = slabs_[slab];
  if (it.size_class == kUnused || !it.closed) {
    return;  // it has become empty meanwhile
  }
  it.closed = false;
  if (it.used < classes_[it.size_class].per_slab) {
    link(slab);
  }
}

void SlabArena::trim() {
  const std::lock_guard guard(mutex_);
  const std::uint64_t empty = return_blocks(dirty_, true);
  (void)return_blocks(trimmed_, false);
  return_slabs((memory_slabs_ - empty) / 16 + kBlockSlabs);
}

/// Takes the slabs of blocks that are empty off a list. Returns how many are left on it.
std::uint64_t SlabArena::return_blocks(std::uint32_t& list, bool has_memory) {
  std::uint32_t* link = &list;
  std::uint64_t left = 0;
  while (*link != kNil) {
    const std::uint32_t slab = *link;
    const std::uint32_t number = slab / kBlockSlabs;
    Block& block = blocks_[number];
    if (block.empty < kBlockSlabs) {
      ++left;
      link = &slabs_[slab].next;
      continue;
    }
    *link = slabs_[slab].next;
    memory_slabs_ -= has_memory ? 1 : 0;
    if (!block.bare) {
      (void)::madvise(at(number * kBlockSlabs), kBlockSize, MADV_DONTNEED);
      block = {bare_, kBlockSlabs, false, true};
      bare_ = number;
    }
  }
  return left;
}

/// Returns the memory of empty slabs, but for so many in huge pages.
void SlabArena::return_slabs(std::uint64_t most_kept) {
  std::uint32_t* link = &dirty_;
  std::uint64_t kept = 0;
  while (*link != kNil) {
    const std::uint32_t slab = *link;
    Slab& it = slabs_[slab];
    Block& block = blocks_[slab / kBlockSlabs];
    if (block.huge && kept < most_kept) {
      ++kept;
      link = &it.next;
      continue;
    }
    if (block.huge) {
      // Splits the page (madvise_free_huge_pmd() in mm/huge_memory.c): MADV_DONTNEED of a part
      // only unmaps that part, and the kernel has it back when it is short of memory.
      (void)::madvise(at(slab), kSlabSize, MADV_FREE);
      block.huge = false;
    }
    (void)::madvise(at(slab), kSlabSize, MADV_DONTNEED);
    *link = it.next;
    it.next = trimmed_;
    trimmed_ = slab;
    --memory_slabs_;
  }
}

Bytes SlabArena::memory() const {
  const std::lock_guard guard(mutex_);
  return Bytes(memory_slabs_ * kSlabSize);
}

Bytes SlabArena::metadata() const {
  const std::lock_guard guard(mutex_);
  return Bytes(slabs_.size() * sizeof(Slab) + blocks_.size() * sizeof(Block) +
               bit_words_ * sizeof(std::uint64_t));
}

}  // namespace fileballoon
