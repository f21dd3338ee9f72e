#include "host/attachment.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "host/channel_socket.h"
#include "host/guest_layout.h"
#include "host/ram_sharers.h"

namespace fileballoon::host {
namespace {

/// A monitor that is free answers in milliseconds; one that is busy must not hold up a restart.
constexpr std::chrono::milliseconds kAskAgainTimeout{500};

std::vector<BackingId> ids_of(const GuestRam& ram) {
  std::vector<BackingId> ids;
  for (const Backing& backing : ram.backings()) {
    ids.push_back({backing.device, backing.inode, backing.size});
  }
  return ids;
}

/// Refuses what makes even a discard unsafe. `now`: put behind "has an assigned device".
Result<void> check_devices(const RamSharers& sharers, std::string_view now = "") {
  if (sharers.assigned_devices.empty()) {
    return {};
  }
  return Error{fmt::format(
      "the VM has an assigned device{} ({}): the device keeps using pages that a discard has "
      "replaced, which would corrupt the guest; detach the device first",
      now, sharers.assigned_devices.front())};
}

/// The layout, by the surest way there is; adds what the operator should know.
Result<RamLayout> find_layout(const VmSpec& spec, const GuestRam& ram, Attachment& attachment) {
  std::vector<std::string>& warnings = attachment.known.warnings;
  if (spec.qmp.empty()) {
    warnings.push_back(
        "no --qmp given: other discarders of this RAM, assigned devices, and what must not be "
        "paged (vhost-user, drives with O_DIRECT) cannot be seen");
    return identity_layout(ram.backings());
  }
  Result<QmpClient> qmp = QmpClient::connect(spec.qmp);
  if (!qmp) {
    return qmp.error();
  }
  Result<RamSharers> sharers = find_ram_sharers(*qmp);
  if (!sharers) {
    return sharers.error();
  }
  if (const Result<void> good = check_devices(*sharers); !good) {
    return good.error();
  }
  warnings.insert(warnings.end(), sharers->warnings.begin(), sharers->warnings.end());
  attachment.paging_hazards = std::move(sharers->paging_hazards);
  return layout_from_qmp(*qmp, ram.backings(), sharers->shared_backends);
}

/// The layout of before a restart. Devices may have been plugged in meanwhile; a monitor that does
/// not answer now is no reason to leave the VM alone.
Result<RamLayout> known_layout(const VmSpec& spec, const KnownVm& known, const GuestRam& ram,
                               Attachment& attachment) {
  attachment.known.warnings = known.warnings;
  if (Result<QmpClient> qmp = spec.qmp.empty() ? Result<QmpClient>(Error{""})
                                               : QmpClient::connect(spec.qmp, kAskAgainTimeout)) {
    const Result<RamSharers> sharers = find_ram_sharers(*qmp);
    if (sharers) {
      if (const Result<void> good = check_devices(*sharers, " now"); !good) {
        return good.error();
      }
      attachment.paging_hazards = sharers->paging_hazards;
      if (!sharers->shared_backends.empty()) {
        // Plugged in meanwhile, or remembered by a daemon that took it for RAM.
        return layout_from_qmp(*qmp, ram.backings(), sharers->shared_backends);
      }
    }
  }
  return RamLayout::create(known.segments);
}

}  // namespace

Result<Attachment> attach_vm(const VmSpec& spec, const std::optional<KnownVm>& known) {
  Result<GuestRam> ram = GuestRam::open(spec.pid);
  if (!ram) {
    return ram.error();
  }
  Attachment attachment;
  attachment.spec = spec;
  attachment.vmm = ram->process().name;
  attachment.known.warnings = ram->warnings();
  attachment.known.start_time = ram->process().start_time;
  attachment.known.backings = ids_of(*ram);
  if (known && known->start_time != attachment.known.start_time) {
    return Error{fmt::format("pid {} is another process now; the VM has gone", spec.pid)};
  }
  attachment.pidfd.reset(::fcntl(ram->process().pidfd.get(), F_DUPFD_CLOEXEC, 0));
  if (!attachment.pidfd.valid()) {
    return Error{fmt::format("cannot watch {}: out of file descriptors", ram->process().label())};
  }

  const bool is_known = known && known->backings == attachment.known.backings;
  Result<RamLayout> layout =
      is_known ? known_layout(spec, *known, *ram, attachment) : find_layout(spec, *ram, attachment);
  if (!layout) {
    return layout.error();
  }
  attachment.was_known = is_known;
  attachment.known.segments = layout->segments();
  std::vector<std::string> no_ram;
  Result<RamLayout> kept = keep_only_ram(*layout, *ram, no_ram);
  if (!kept) {
    return kept.error();
  }
  attachment.layout = std::move(*kept);
  for (const std::string& name : no_ram) {
    const std::string warning =
        fmt::format("shared memory '{}' is no RAM of the guest: it is left alone", name);
    auto& warnings = attachment.known.warnings;
    if (std::find(warnings.begin(), warnings.end(), warning) == warnings.end()) {
      warnings.push_back(warning);  // once, also after a restart
    }
  }

  Result<UniqueFd> channel = connect_channel(spec.channel);
  if (!channel) {
    return channel.error();
  }
  attachment.channel = std::move(*channel);
  if (const pid_t listener = listener_of(attachment.channel.get());
      listener != 0 && listener != spec.pid && !is_known) {
    // Not an error: libvirt opens the socket and passes it to QEMU.
    attachment.known.warnings.push_back(
        fmt::format("the channel {} was opened by pid {}, not by the VM's pid {}; make sure that "
                    "it is this VM's",
                    spec.channel, listener, spec.pid));
  }

  std::erase_if(attachment.known.warnings, is_about_protection);  // of the time before a restart
  Result<std::unique_ptr<RamOwner>> owner =
      make_ram_owner(spec.refault, std::move(*ram), attachment.layout, attachment.known.warnings);
  if (!owner) {
    return owner.error();
  }
  attachment.ram = std::move(*owner);
  return attachment;
}

}  // namespace fileballoon::host
