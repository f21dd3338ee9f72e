#include "uffd/pager/page_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

#include "fileballoon/bytes.h"

namespace fileballoon {

PageBuffer::PageBuffer(std::size_t pages) : pages_(pages) {
  void* base = ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (base == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "allocating page buffers");
  }
  base_ = static_cast<std::byte*>(base);
}

PageBuffer::~PageBuffer() {
  if (base_ != nullptr) {
    ::munmap(base_, pages_ * kPageSize);
  }
}

std::byte* PageBuffer::page(std::size_t index) { return base_ + index * kPageSize; }

}  // namespace fileballoon
