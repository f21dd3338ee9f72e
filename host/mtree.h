// Reads `info mtree -f` of QEMU's human monitor: which guest-physical addresses are backed by what.
// Pure text in, ranges out, so every machine type's output is a unit test. QEMU prints one flat
// view per set of address spaces; the one named "memory" is what the CPUs see outside system
// management mode. The daemon's layout code is the caller.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fileballoon/result.h"

namespace fileballoon::host {

/// One line of a flat view.
struct MtreeRange {
  std::uint64_t first = 0;  ///< guest-physical address
  std::uint64_t last = 0;   ///< inclusive
  std::string kind;         ///< "ram", "rom", "romd", "i/o", "nv-ram", …
  std::string name;         ///< of the memory region: "ram0", "pc.ram", "/objects/ram0", "vga.vram"
  std::uint64_t offset = 0;  ///< into that region
  bool operator==(const MtreeRange&) const = default;
};

/// The ranges of address space `address_space`, ascending as QEMU prints them. Fails where the text
/// holds no such address space or a line of it cannot be read (it names the line).
[[nodiscard]] Result<std::vector<MtreeRange>> parse_mtree(
    std::string_view text, std::string_view address_space = "memory");

}  // namespace fileballoon::host
