// Where guest-physical RAM lies in its backings. QEMU says which guest addresses are RAM
// (`info mtree -f`, `query-memdev`) and at which of its own addresses each run appears (`gpa2hva`);
// the VMM's mappings turn that into backing offsets. So nothing is guessed from machine types,
// sizes or names, and PCI holes and several NUMA backends come out right. Asked once, at attach, on
// a worker thread; everything but the QMP calls is pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fileballoon/ram_layout.h"
#include "host/mtree.h"
#include "host/qmp_client.h"
#include "uffd/guest_ram.h"

namespace fileballoon::host {

/// A memory backend as `query-memdev` lists it.
struct MemoryBackend {
  std::string id;
  Bytes size;
  bool shared = false;
  bool operator==(const MemoryBackend&) const = default;
};

/// A run of guest RAM and where it appears in the VMM.
struct PlacedRam {
  std::uint64_t guest_address = 0;
  Bytes size;
  std::uint64_t vmm_address = 0;
};

/// The QEMU options that make guest RAM shared, for messages.
[[nodiscard]] std::string shared_ram_options(Bytes size);

/// The id of a backend by the name of its region, which is the id or, where
/// x-use-canonical-path-for-ramblock-id is on (older machine types), its QOM path.
[[nodiscard]] std::string_view backend_id(std::string_view name);

[[nodiscard]] Result<std::vector<MemoryBackend>> parse_memdevs(const boost::json::value& reply);

/// The ranges of `mtree` that are RAM of one of `backends`: not ROM, not device memory, and not the
/// legacy hole of a PC (640 KiB to 1 MiB), which firmware remaps while it runs.
[[nodiscard]] std::vector<MtreeRange> guest_ram_ranges(std::span<const MtreeRange> mtree,
                                                       std::span<const MemoryBackend> backends);

/// Reads the address out of "Host virtual address for 0x0 (ram0) is 0x7f…".
[[nodiscard]] Result<std::uint64_t> parse_gpa2hva(std::string_view text);

/// Finds every run in the VMM's mappings of the backings.
[[nodiscard]] Result<RamLayout> place_in_backings(std::span<const PlacedRam> runs,
                                                  std::span<const Backing> backings);

/// All of the above over QMP. `shared_backends`: ids of those that are no RAM of the guest, though
/// it sees them among its memory.
[[nodiscard]] Result<RamLayout> layout_from_qmp(QmpClient& qmp, std::span<const Backing> backings,
                                                std::span<const std::string> shared_backends);

/// Without QMP: guest-physical address = backing offset. Right only below every PCI hole, so more
/// than 2 GiB or more than one backing is refused with the advice to give the monitor.
[[nodiscard]] Result<RamLayout> identity_layout(std::span<const Backing> backings);

/// Drops from `ram` every backing that no segment of `layout` lies in, and returns `layout` for
/// what is left, with the names of the objects that were dropped in `dropped`.
[[nodiscard]] Result<RamLayout> keep_only_ram(const RamLayout& layout, GuestRam& ram,
                                              std::vector<std::string>& dropped);

}  // namespace fileballoon::host
