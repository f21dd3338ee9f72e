// PinPipe: holds page cache pages where they are. vmsplice(2) of a mapping puts one reference on
// every page into a pipe; a page with such a reference is neither reclaimed, nor invalidated, nor
// migrated (compaction skips it: 0 of 7,936 moved, Linux 6.12), unlike an mlock'ed one. The pins
// end with release() or with the process. Single-threaded.
#pragma once

#include <cstdint>

#include "fileballoon/bytes.h"
#include "guest-fs/unique_fd.h"

namespace fileballoon::guest {

class PinPipe {
 public:
  /// One pipe holds this many pages: /proc/sys/fs/pipe-max-size is 1 MiB by default.
  static constexpr std::uint64_t kCapacity = 256;

  /// Throws std::system_error where pipes cannot be had.
  PinPipe();

  /// Pins the `pages` pages mapped at `address`, filling them from the file where they are not
  /// cached. 0 or an errno value (EFAULT: the file could not be read); on error nothing is pinned.
  [[nodiscard]] int pin(const void* address, std::uint64_t pages);
  /// The same by splice(2) from the file, without a mapping.
  [[nodiscard]] int pin_file(int fd, std::uint64_t byte_offset, std::uint64_t pages);
  [[nodiscard]] std::uint64_t pinned() const { return pinned_; }
  void release();

 private:
  UniqueFd read_end_;
  UniqueFd write_end_;
  std::uint64_t pinned_ = 0;
};

}  // namespace fileballoon::guest
