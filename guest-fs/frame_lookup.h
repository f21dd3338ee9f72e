// FrameLookup: which guest frame stands behind each page of this process's own mapping, from
// /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst). An answer is only worth something
// while the page is pinned. Single-threaded.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "fileballoon/frame.h"
#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

class FrameLookup {
 public:
  static constexpr std::size_t kMostPages = 512;

  /// Opens the page map and tries it on a page of its own: without CAP_SYS_ADMIN the kernel shows
  /// frame number 0 for everything, and the error says so.
  [[nodiscard]] static Result<FrameLookup> open();

  enum class Look {
    all,          ///< every page has a frame
    not_present,  ///< at least one page is not mapped right now, and its frame is given as 0: map
                  ///< it again and retry
    failed,
  };
  /// Looks up `frames.size()` pages (at most kMostPages) from `address`.
  [[nodiscard]] Look look(const void* address, std::span<GuestFrame> frames);

 private:
  explicit FrameLookup(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  std::array<std::uint64_t, kMostPages> entries_{};
};

}  // namespace fileballoon::guest
