#include "guest-fs/page_window.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

namespace fileballoon::guest {
namespace {

constexpr std::uintptr_t kAlignment = kFolioPages * kPageSize;

}  // namespace

PageWindow::PageWindow(const BalloonFile& file, std::uint64_t pages)
    : file_(file), reserved_bytes_(pages * kPageSize + kAlignment) {
  reserved_ = ::mmap(nullptr, reserved_bytes_, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "address space of a batch");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(reserved_);
  base_ = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

PageWindow::~PageWindow() { ::munmap(reserved_, reserved_bytes_); }

bool PageWindow::show(Extent extent) {
  if (::mmap(base_, extent.size().count(), PROT_READ, MAP_SHARED | MAP_FIXED, file_.fd(),
             static_cast<off_t>(extent.first.byte_offset())) == MAP_FAILED) {
    return false;
  }
  shown_pages_ = extent.count;
  // A page that is missing is read alone, and mapping does not count as use (vma_has_recency()).
  ::madvise(base_, extent.size().count(), MADV_RANDOM);
  return true;
}

int PageWindow::populate() {
  return ::madvise(base_, shown_pages_ * kPageSize, MADV_POPULATE_READ) == 0 ? 0 : errno;
}

void PageWindow::hide() {
  // The mapping itself stays until the next one replaces it: one call less, no tables freed.
  if (shown_pages_ > 0) {
    ::madvise(base_, shown_pages_ * kPageSize, MADV_DONTNEED);
    shown_pages_ = 0;
  }
}

}  // namespace fileballoon::guest
