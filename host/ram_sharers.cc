#include "host/ram_sharers.h"

#include <fmt/format.h>

#include <algorithm>

#include "host/guest_layout.h"

namespace fileballoon::host {
namespace {

// Calls visit(type, id) for each device of a container, by the answer of `qom-list`.
template <class Visit>
void for_each_device(const boost::json::value& qom_list, Visit&& visit) {
  const auto* items = qom_list.if_array();
  for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) {
    if (const auto* item = (*items)[i].if_object()) {
      visit(reply_text(*item, "type"), reply_text(*item, "name"));
    }
  }
}

std::string vhost_user_hazard(std::string_view kind, std::string_view id, std::string_view remedy) {
  return fmt::format(
      "{} '{}' (vhost-user) is served by another process, which maps guest RAM itself: what it "
      "writes to paged-out frames would be lost; {}, or attach without a store",
      kind, id, remedy);
}

}  // namespace

void add_sharing_devices(const boost::json::value& qom_list, RamSharers& sharers) {
  for_each_device(qom_list, [&](std::string_view type, std::string_view id) {
    if (type.starts_with("child<virtio-mem")) {
      sharers.warnings.push_back(fmt::format(
          "device '{}' (virtio-mem) plugs and unplugs RAM of the same guest; RAM that it adds "
          "after this attach is not ballooned",
          id));
    } else if (type.starts_with("child<vfio-")) {
      sharers.assigned_devices.push_back(fmt::format("'{}', VFIO", id));
    } else if (type.starts_with("child<vhost-vdpa")) {
      sharers.assigned_devices.push_back(fmt::format("'{}', vDPA", id));
    } else if (type.starts_with("child<vhost-user")) {
      sharers.paging_hazards.push_back(vhost_user_hazard("device", id, "remove the device"));
    }
  });
}

// " \ net0: index=0,type=vhost-user,chardev" a line
void add_sharing_netdevs(std::string_view info_network, RamSharers& sharers) {
  for (std::size_t at = 0; at < info_network.size();) {
    const std::size_t end = std::min(info_network.find('\n', at), info_network.size());
    const std::string_view line = info_network.substr(at, end - at);
    at = end + 1;
    const std::size_t first = line.find_first_not_of(" \\");
    if (first == std::string_view::npos) {
      continue;
    }
    const std::string_view id = line.substr(first, line.find(':', first) - first);
    if (line.find("type=vhost-vdpa") != std::string_view::npos) {
      sharers.assigned_devices.push_back(fmt::format("netdev '{}', vDPA", id));
    } else if (line.find("type=vhost-user") != std::string_view::npos) {
      sharers.paging_hazards.push_back(
          vhost_user_hazard("netdev", id, "use a tap with vhost=on instead"));
    }
  }
}

void add_direct_drives(const boost::json::value& block_nodes, RamSharers& sharers) {
  if (!block_nodes.is_array()) {
    return;
  }
  for (const boost::json::value& item : block_nodes.get_array()) {
    const auto* node = item.if_object();
    const auto* cache = node != nullptr ? node->if_contains("cache") : nullptr;
    const auto* direct = cache != nullptr && cache->is_object()
                             ? cache->get_object().if_contains("direct")
                             : nullptr;
    if (direct != nullptr && direct->is_bool() && direct->get_bool()) {
      sharers.paging_hazards.push_back(fmt::format(
          "drive node '{}' ({}) uses O_DIRECT: a read in flight writes to frames past the page "
          "tables, and would be lost where its frame is paged out meanwhile; use cache=writeback "
          "(cache.direct=off), or attach without a store",
          reply_text(*node, "node-name"), reply_text(*node, "file")));
      return;  // one is enough to say it
    }
  }
}

Result<RamSharers> find_ram_sharers(QmpClient& qmp) {
  RamSharers sharers;
  for (const std::string path : {"/machine/peripheral", "/machine/peripheral-anon"}) {
    const Result<boost::json::value> devices = qmp.execute("qom-list", {{"path", path}});
    if (!devices) {
      return devices.error();
    }
    for_each_device(*devices, [&](std::string_view type, std::string_view id) {
      const auto property = [&](std::string_view name) {
        return qmp.execute("qom-get",
                           {{"path", fmt::format("{}/{}", path, id)}, {"property", name}});
      };
      if (type.starts_with("child<virtio-balloon")) {
        const Result<boost::json::value> reporting = property("free-page-reporting");
        const bool reports = reporting && reporting->is_bool() && reporting->get_bool();
        sharers.warnings.push_back(fmt::format(
            "device '{}' (virtio-balloon{}) discards the same RAM: nothing is lost, but footprint "
            "is then not ours alone; leave its target at full RAM or remove it",
            id, reports ? " with free page reporting" : ""));
      } else if (type.starts_with("child<ivshmem")) {
        const Result<boost::json::value> memdev = property("memdev");
        if (memdev && memdev->is_string()) {  // "/objects/shm0"
          sharers.shared_backends.emplace_back(backend_id(memdev->get_string()));
        }
      }
    });
    add_sharing_devices(*devices, sharers);
  }
  const Result<std::string> network = qmp.human("info network");
  if (!network) {
    return network.error();
  }
  add_sharing_netdevs(*network, sharers);
  const Result<boost::json::value> nodes = qmp.execute("query-named-block-nodes");
  if (!nodes) {
    return nodes.error();
  }
  add_direct_drives(*nodes, sharers);
  return sharers;
}

}  // namespace fileballoon::host
