#include "guest-fs/locked_floor.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
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

void LockedFloor::shrink_to(std::uint64_t pages, std::vector<Extent>& released) {
  while (this->pages() > pages) {
    Piece& last = pieces_.back();
    const std::uint64_t keep = pages > last.index ? pages - last.index : 0;
    const Extent gone{last.extent.first + keep, last.extent.count - keep};
    void* const at = const_cast<void*>(address(last.index + keep));
    ::mmap(at, gone.size().count(), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    released.push_back(gone);
    frames_.resize(last.index + keep);
    last.extent.count = keep;
    if (keep == 0) {
      pieces_.pop_back();
    }
  }
  look_next_ = std::min(look_next_, this->pages());
}

void LockedFloor::find_moved(FrameLookup& lookup, std::size_t most, std::vector<Moved>& out) {
  std::array<GuestFrame, FrameLookup::kMostPages> seen;
  const std::uint64_t looks = std::min(kLooksPerCall, pages());
  for (std::uint64_t done = 0; done < looks && out.size() < most;) {
    if (look_next_ >= pages()) {
      look_next_ = 0;
    }
    const std::uint64_t count =
        std::min<std::uint64_t>({seen.size(), pages() - look_next_, looks - done});
    // "Not present" is a page on its way (a migration entry): the next round sees where it went.
    if (lookup.look(address(look_next_), std::span(seen).first(count)) ==
        FrameLookup::Look::failed) {
      return;
    }
    std::uint64_t i = 0;
    for (; i < count && out.size() < most; ++i) {
      if (seen[i].number() != 0 && seen[i].number() != frames_[look_next_ + i]) {
        out.push_back({look_next_ + i});
      }
    }
    look_next_ += i;
    done += i;
  }
}

void LockedFloor::set_frame(std::uint64_t index, GuestFrame frame) {
  if (index < frames_.size()) {
    frames_[index] = static_cast<std::uint32_t>(frame.number());
  }
}

}  // namespace fileballoon::guest
