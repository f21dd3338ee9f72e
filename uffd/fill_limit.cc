#include "uffd/fill_limit.h"

#include <sys/stat.h>

#include <algorithm>

namespace fileballoon {

void FillLimit::set(std::optional<Bytes> most) {
  most_.store(most ? most->count() : kNone, std::memory_order_relaxed);
  credit_.store(0, std::memory_order_relaxed);
}

Bytes FillLimit::footprint() const {
  Bytes sum;
  for (const int object : objects_) {
    struct stat status {};
    if (object >= 0 && ::fstat(object, &status) == 0) {
      sum += Bytes(static_cast<std::uint64_t>(status.st_blocks) * 512);
    }
  }
  return sum;
}

std::uint32_t FillLimit::admit(std::uint32_t wanted) {
  const std::uint64_t most = most_.load(std::memory_order_relaxed);
  if (most == kNone) {
    return wanted;
  }
  std::uint64_t credit = credit_.load(std::memory_order_relaxed);
  while (credit > 0) {
    const std::uint64_t taken = std::min<std::uint64_t>(credit, wanted);
    if (credit_.compare_exchange_weak(credit, credit - taken, std::memory_order_relaxed)) {
      return static_cast<std::uint32_t>(taken);
    }
  }
  const std::uint64_t room = (Bytes(most) - footprint()).whole_pages();  // never below zero
  if (room == 0) {
    waiting_.store(true, std::memory_order_relaxed);
    return 0;
  }
  const std::uint64_t taken = std::min<std::uint64_t>(room, wanted);
  credit_.store(std::min(kCredit, room - taken), std::memory_order_relaxed);
  return static_cast<std::uint32_t>(taken);
}

}  // namespace fileballoon
