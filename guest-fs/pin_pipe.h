// PinPipe: holds page cache pages where they are. vmsplice(2) of a mapping puts one reference on
// every page into a pipe; a page with such a reference is neither reclaimed, nor invalidated, nor
// migrated (compaction skips it: 0 of 7,936 moved, Linux 6.12), unlike an mlock'ed one. The pins
// end with release() or with the process. Single-threaded.
#pragma once

#include <cstdint>
#include <vector>

#include "fileballoon/bytes.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

class PinPipe {
 public:
  static constexpr std::uint64_t kMostPages = 512;
  /// One pipe of the kernel's holds this many: /proc/sys/fs/pipe-max-size is 1 MiB by default, and
  /// more would need CAP_SYS_RESOURCE.
  static constexpr std::uint64_t kPagesPerPipe = 256;

  /// Room for `pages` pages, at most kMostPages. Throws std::system_error where pipes cannot be
  /// had.
  explicit PinPipe(std::uint64_t pages);

  [[nodiscard]] std::uint64_t capacity() const { return pipes_.size() * kPagesPerPipe; }

  /// Pins the `pages` pages mapped at `address`, filling them from the file where they are not
  /// cached, beside what it holds already. 0 or an errno value (EFAULT: the file could not be
  /// read); on error nothing is pinned.
  [[nodiscard]] int pin(const void* address, std::uint64_t pages);
  void release();

 private:
  struct Pipe {
    UniqueFd read_end;
    UniqueFd write_end;
    std::uint64_t pinned = 0;
  };
  [[nodiscard]] std::uint64_t pinned() const;

  std::vector<Pipe> pipes_;
};

}  // namespace fileballoon::guest
