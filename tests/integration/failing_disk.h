// FailingDisk: a file on a file system of the test's own (FUSE), whose writes and reads fail with
// EIO when the test says so, as a disk's do. What was written is kept in memory. Serves from
// threads of its own, from construction to destruction; needs root and /dev/fuse.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "fileballoon/unique_fd.h"

struct fuse;

namespace fileballoon::testing {

class FailingDisk {
 public:
  [[nodiscard]] static bool can_be_made();

  /// Mounts on `folder`, which exists and is empty. Throws std::runtime_error.
  explicit FailingDisk(std::string folder);
  FailingDisk(const FailingDisk&) = delete;
  FailingDisk& operator=(const FailingDisk&) = delete;
  ~FailingDisk();

  /// The one file on it.
  [[nodiscard]] std::string file() const { return folder_ + "/disk"; }
  void fail_writes(bool fail) { fail_writes_ = fail; }
  /// From now on nobody can read the page that was written last.
  void spoil_last_page() { bad_page_ = last_page_.load(); }

 private:
  struct Operations;

  std::string folder_;
  UniqueFd content_;
  std::atomic<bool> fail_writes_{false};
  std::atomic<std::int64_t> last_page_{-1};
  std::atomic<std::int64_t> bad_page_{-1};
  fuse* fuse_ = nullptr;
  std::thread server_;
};

}  // namespace fileballoon::testing
