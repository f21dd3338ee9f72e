// What else in a QEMU VM discards, pins or writes to guest RAM: other balloons, assigned devices,
// other processes that map it. Asked over QMP at each attach, on a worker thread; everything but
// find_ram_sharers() is pure.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "host/qmp_client.h"

namespace fileballoon::host {

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

/// What QMP `qom-list` of a device container says about sharers (where a property of the device
/// decides, find_ram_sharers() asks), HMP `info network` and QMP `query-named-block-nodes`.
void add_sharing_devices(const boost::json::value& qom_list, RamSharers& sharers);
void add_sharing_netdevs(std::string_view info_network, RamSharers& sharers);
void add_direct_drives(const boost::json::value& block_nodes, RamSharers& sharers);

[[nodiscard]] Result<RamSharers> find_ram_sharers(QmpClient& qmp);

}  // namespace fileballoon::host
