// Attaching: everything that is found out about a VM before it is managed, in one go. It blocks
// (for /proc, for QMP), so it runs on a worker thread; the result owns all that it opened.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fileballoon/ram_layout.h"
#include "fileballoon/unique_fd.h"
#include "host/ram_owner.h"
#include "host/vm_spec.h"

namespace fileballoon::host {

/// Names a backing for as long as its VMM lives.
struct BackingId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  Bytes size;
  bool operator==(const BackingId&) const = default;
};

/// What a daemon remembers of a VM over its own restart: which process it was, and where its RAM
/// lies, so that the monitor (which may be busy then) is not needed again. Warnings are what the
/// operator should know of this VM.
struct KnownVm {
  std::uint64_t start_time = 0;  ///< of the process, clock ticks since boot
  std::vector<BackingId> backings;
  std::vector<RamSegment> segments;
  std::vector<std::string> warnings;
};

struct Attachment {
  VmSpec spec;
  KnownVm known;
  std::string vmm;  ///< name of the process
  UniqueFd pidfd;
  std::unique_ptr<RamOwner> ram;
  RamLayout layout;
  bool was_known = false;  ///< found again after a restart
  /// Why frames of this VM must not be paged out: sentences, each with its remedy.
  std::vector<std::string> paging_hazards;
  UniqueFd channel;  ///< connected
};

/// Attaches to the VM of `spec`. With `known`, insists on the very process that was known then.
/// Errors name what is wrong with which part and the remedy. Thread-safe; may take some seconds
/// where QEMU's monitor hangs.
[[nodiscard]] Result<Attachment> attach_vm(const VmSpec& spec,
                                           const std::optional<KnownVm>& known = std::nullopt);

}  // namespace fileballoon::host
