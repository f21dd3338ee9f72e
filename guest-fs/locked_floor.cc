#include "guest-fs/locked_floor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace fileballoon::guest {

LockedFloor::LockedFloor(const BalloonFile& file, Bytes most)
    : file_(file), capacity_(most.whole_pages()) {
  base_ = ::mmap(nullptr, std::max<std::uint64_t>(capacity_, 1) * kPageSize, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "address space for the floor");
  }
}

LockedFloor::~LockedFloor() { ::munmap(base_, std::max<std::uint64_t>(capacity_, 1) * kPageSize); }

int LockedFloor::add(Extent extent, std::span<const GuestFrame> frames) {
  if (pages() + extent.count > capacity_) {
    return ENOMEM;
  }
  void* const at = const_cast<void*>(address(pages()));
  const auto unmap = [&] {
    ::mmap(at, extent.size().count(), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  };
  if (::mmap(at, extent.size().count(), PROT_READ, MAP_SHARED | MAP_FIXED, file_.fd(),
             static_cast<off_t>(extent.first.byte_offset())) == MAP_FAILED ||
      ::mlock(at, extent.size().count()) != 0) {
    const int error = errno;
    unmap();
    return error;
  }
  pieces_.push_back({extent, pages()});
  for (const GuestFrame frame : frames.first(extent.count)) {
    frames_.push_back(static_cast<std::uint32_t>(frame.number()));
  }
  return 0;
}

void LockedFloor::shrink_to(std::uint64_t pages, std::vector<Released>& released) {
  while (this->pages() > pages) {
    Piece& last = pieces_.back();
    const std::uint64_t keep = pages > last.index ? pages - last.index : 0;
    const Extent gone{last.extent.first + keep, last.extent.count - keep};
    void* const at = const_cast<void*>(address(last.index + keep));
    ::mmap(at, gone.size().count(), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    Released& out = released.emplace_back();
    out.extent = gone;
    for (std::uint64_t i = last.index + keep; i < frames_.size(); ++i) {
      out.frames.push_back(frame(i));
    }
    ++version_;
    frames_.resize(last.index + keep);
    last.extent.count = keep;
    if (keep == 0) {
      pieces_.pop_back();
    }
  }
}

void LockedFloor::set_frame(std::uint64_t index, GuestFrame frame) {
  if (index < frames_.size()) {
    frames_[index] = static_cast<std::uint32_t>(frame.number());
  }
}

}  // namespace fileballoon::guest
