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

/// What else in this VM discards or pins guest RAM.
struct RamSharers {
  /// Each a sentence for the operator: QEMU's own balloon, free page reporting, virtio-mem.
  std::vector<std::string> warnings;
  /// Assigned devices (VFIO, vDPA), as sentence parts that name them: they hold DMA addresses of
  /// pages that a discard would replace.
  std::vector<std::string> assigned_devices;
  /// Sentences, each with its remedy: what writes to guest RAM unseen by a userfaultfd, so that a
  /// frame that is being paged out would lose it. A discard is safe: the guest uses none of what it
  /// discards.
  std::vector<std::string> paging_hazards;
  /// Ids of memory backends that are shared with other processes (ivshmem): a guest sees them as
  /// memory behind a PCI device, and discarding or paging them would take others' data.
  std::vector<std::string> shared_backends;
};

/// What QMP `qom-list` of a device container says about sharers (devices with a property of their
/// own, the balloon, are told by `find_ram_sharers`), HMP `info network` and QMP
/// `query-named-block-nodes`.
void add_sharing_devices(const boost::json::value& qom_list, RamSharers& sharers);
void add_sharing_netdevs(std::string_view info_network, RamSharers& sharers);
void add_direct_drives(const boost::json::value& block_nodes, RamSharers& sharers);

[[nodiscard]] Result<RamSharers> find_ram_sharers(QmpClient& qmp);

}  // namespace fileballoon::host
