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
  void* base = ::mmap(nullptr, most_slabs_ * kSlabSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(),
                            "reserving " + to_string(this->limit()) + " for compressed pages");
  }
  base_ = static_cast<std::byte*>(base);
  // A huge page would keep memory behind slabs that were returned.
  (void)::madvise(base_, most_slabs_ * kSlabSize, MADV_NOHUGEPAGE);

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
  ::munmap(base_, most_slabs_ * kSlabSize);
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

std::uint32_t SlabArena::open_slab(std::uint8_t size_class, bool& is_bare) {
  std::uint32_t slab = kNil;
  is_bare = dirty_ == kNil;
  if (dirty_ != kNil) {
    slab = dirty_;
    dirty_ = slabs_[slab].next;
  } else if (trimmed_ != kNil) {
    slab = trimmed_;
    trimmed_ = slabs_[slab].next;
    ++memory_slabs_;
  } else if (slabs_.size() < most_slabs_) {
    slab = static_cast<std::uint32_t>(slabs_.size());
    slabs_.emplace_back();
    ++memory_slabs_;
  } else {
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
}

std::optional<ObjectId> SlabArena::allocate(std::size_t size) {
  bool is_bare = false;  // nothing is behind the slab yet
  const auto object = take(class_of(size), is_bare);
  if (object && is_bare) {
    // All of it in one call (5.14): 16 page faults, one after the other beside compressing, cost a
    // third of page-out in a virtual machine. Without the lock, which page-ins take.
    (void)::madvise(base_ + object->slab() * kSlabSize, kSlabSize, MADV_POPULATE_WRITE);
  }
  return object;
}

std::optional<ObjectId> SlabArena::take(std::uint8_t size_class, bool& is_bare) {
  const std::lock_guard guard(mutex_);
  SizeClass& of = classes_[size_class];
  std::uint32_t slab = of.with_room;
  if (slab == kNil) {
    slab = open_slab(size_class, is_bare);
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
  return base_ + object.slab() * kSlabSize +
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
  while (dirty_ != kNil) {
    const std::uint32_t slab = dirty_;
    Slab& it = slabs_[slab];
    (void)::madvise(base_ + slab * kSlabSize, kSlabSize, MADV_DONTNEED);
    dirty_ = it.next;
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
  return Bytes(slabs_.size() * sizeof(Slab) + bit_words_ * sizeof(std::uint64_t));
}

}  // namespace fileballoon
