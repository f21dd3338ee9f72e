// ReadAhead: a process that has the balloon file filled. With large pages it does all of it; with
// small ones it asks the kernel to read ahead, which allocates the pages and queues the reads that
// the file system's process answers. The inflater meanwhile maps, pins and looks at what is there:
// stages that run on different CPUs. It is a
// process and not a thread because the inflater maps and unmaps all the time, and every unmapping
// would interrupt a CPU that runs another thread of the same address space. The inflater's loop
// calls every function.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "fileballoon/unique_fd.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"

namespace fileballoon::guest {

class ReadAhead {
 public:
  /// Starts the process; to be called before the calling one has threads. `file` must outlive it.
  /// Throws std::system_error.
  explicit ReadAhead(const BalloonFile& file);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// Asks for `extent`, as one folio if `whole` and possible; several may be under way, and they
  /// are served in order. `cpu`: on that one, which hands out what its own list holds.
  void start(Extent extent, bool whole, std::optional<unsigned> cpu = std::nullopt);
  /// How many of those that were started have been asked of the kernel, since the last call.
  [[nodiscard]] std::size_t finished();
  /// Readable when finished() has something to say.
  [[nodiscard]] int fd() const { return done_.get(); }
  /// Waits until at least one more is finished; returns as finished(). 0: the process died.
  [[nodiscard]] std::size_t wait();
  /// Readable when the process died.
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  [[noreturn]] static void serve(const BalloonFile& file, UniqueFd work, UniqueFd done);

  pid_t pid_ = 0;
  UniqueFd pidfd_;
  UniqueFd work_;
  UniqueFd done_;
};

}  // namespace fileballoon::guest
