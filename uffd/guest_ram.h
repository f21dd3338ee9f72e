// GuestRam: the memory objects behind a running VMM's guest RAM, found from outside. It reads
// /proc/PID/maps, picks the large shared mappings of memfds and tmpfs files, and opens those very
// inodes, so that the host can verify, punch and measure them without the VMM's help. It guarantees
// that every descriptor it hands out refers to an inode that the VMM has mapped shared, in which a
// discard really frees. The daemon calls open() at attach; everything else is cheap.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fileballoon/frame.h"
#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"
#include "uffd/process.h"

namespace fileballoon {

/// Where a piece of a backing appears in the VMM's address space.
struct VmmMapping {
  std::uint64_t address = 0;  ///< virtual, in the VMM
  HostRange range;            ///< the piece of the backing that lies there
  [[nodiscard]] std::uint64_t end() const { return address + range.size.count(); }
};

/// Names a memory object, whoever opens it.
struct InodeId {
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const InodeId&) const = default;
};

/// One memory object behind guest RAM. backings()[i] is what RamSegment::backing == i means.
struct Backing {
  enum class Kind { memfd, tmpfs_file, shared_anonymous };

  UniqueFd fd;  ///< open for reading and writing
  Kind kind = Kind::memfd;
  std::string name;  ///< the name the VMM gave: "ram0" of memfd:ram0, a path, or "anonymous"
  dev_t device = 0;
  ino_t inode = 0;
  Bytes size;
  std::vector<VmmMapping> mappings;  ///< ascending by address; at least one

  /// Memory really allocated now, from st_blocks; zero if the object cannot be asked any more.
  [[nodiscard]] Bytes footprint() const;
  [[nodiscard]] InodeId id() const { return {device, inode}; }
};

class GuestRam {
 public:
  struct Options {
    /// Shared objects below this size are not taken for guest RAM: VMMs also keep small memfds
    /// (vhost logs, display surfaces). 16 MiB is below any guest that boots Linux.
    Bytes min_size = Bytes::mib(16);
  };

  /// Finds and opens the RAM of the VMM `pid`. Backings are ordered by inode size, largest first,
  /// then by address. Every error names the process and the remedy: a pid that is gone, a kernel
  /// thread, another user's process, one without guest RAM, private RAM (with the QEMU options that
  /// make it shared), hugetlbfs and disk files.
  [[nodiscard]] static Result<GuestRam> open(pid_t pid, const Options& options);
  [[nodiscard]] static Result<GuestRam> open(pid_t pid) { return open(pid, Options()); }

  /// For RAM that is known already (a VMM of our own, a test): takes the objects as they are.
  [[nodiscard]] static GuestRam adopt(Process process, std::vector<Backing> backings);

  /// Lets go of every object that is not among `objects`: a VMM also shares memory that is no RAM
  /// of its guest (ivshmem, a backend that no machine uses), which is nobody's to discard or to
  /// page. Fails, and changes nothing, where one of them is not there. Indexes of backings()
  /// change.
  [[nodiscard]] Result<void> keep_only(std::span<const InodeId> objects);

  [[nodiscard]] std::span<const Backing> backings() const { return backings_; }
  /// Sum of the sizes.
  [[nodiscard]] Bytes size() const;
  /// Sum of what is really allocated. Thread-safe; one fstat a backing.
  [[nodiscard]] Bytes footprint() const;

  [[nodiscard]] pid_t pid() const { return process_.pid; }
  [[nodiscard]] const Process& process() const { return process_; }
  /// Things an operator should know that are not errors (transparent huge pages on shared memory).
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  GuestRam(Process process, std::vector<Backing> backings)
      : process_(std::move(process)), backings_(std::move(backings)) {}

  Process process_;
  std::vector<Backing> backings_;
  std::vector<std::string> warnings_;
};

}  // namespace fileballoon
