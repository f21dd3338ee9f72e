// PageBuffer: page-aligned memory for whole pages, as O_DIRECT and UFFDIO_COPY want it; touched
// once when made, so that the fault path never waits for it. Not thread-safe.
#pragma once

#include <cstddef>
#include <utility>

namespace fileballoon {

class PageBuffer {
 public:
  /// Throws std::system_error.
  explicit PageBuffer(std::size_t pages);
  PageBuffer(PageBuffer&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), pages_(std::exchange(other.pages_, 0)) {}
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  ~PageBuffer();

  [[nodiscard]] std::byte* page(std::size_t index);
  [[nodiscard]] std::size_t pages() const { return pages_; }

 private:
  std::byte* base_;
  std::size_t pages_;
};

}  // namespace fileballoon
