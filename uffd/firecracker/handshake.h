// Firecracker's page-fault handler protocol: Firecracker connects to a UNIX socket and sends one
// message, a JSON array of memory regions with the userfaultfd as SCM_RIGHTS; there is no reply.
// This file turns such a message, which a hostile process may have sent, into checked regions and a
// usable descriptor. (Firecracker's docs/snapshotting/handling-page-faults-on-snapshot-resume.md)
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "fileballoon/result.h"
#include "uffd/userfaultfd.h"

namespace fileballoon::firecracker {

/// One piece of guest memory: where it lies in Firecracker, and where in the snapshot's memory
/// file.
struct Region {
  std::uint64_t base_host_virt_addr = 0;
  std::uint64_t size = 0;
  std::uint64_t offset = 0;
  std::uint64_t page_size = 4096;
  bool operator==(const Region&) const = default;
};

/// Most regions in a message; Firecracker has one, or two around the MMIO gap.
inline constexpr std::size_t kMaxRegions = 64;
inline constexpr std::size_t kMaxMessage = 64 * 1024;

/// Parses and checks: regions are aligned, do not overlap in Firecracker's memory, do not wrap
/// around, and have 4 KiB pages. Sorted by address.
[[nodiscard]] Result<std::vector<Region>> parse_regions(std::string_view json);

struct Handshake {
  std::vector<Region> regions;
  Userfaultfd uffd;  ///< non-blocking, whatever it was
};

/// Receives the message from a connected socket, waiting up to `timeout_ms` for all of it.
[[nodiscard]] Result<Handshake> receive_handshake(int socket, int timeout_ms);

}  // namespace fileballoon::firecracker
