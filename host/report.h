// What the daemon does with a REPORT and a POPULATE. A report: check every range against the
// guest's RAM, translate, have the RAM's owner verify and discard, and say per range what became of
// it. Runs on a worker thread; the guest is hostile, so a range that is not plain RAM in ascending
// order is refused and the rest goes on.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "fileballoon/wire.h"
#include "host/ram_owner.h"

namespace fileballoon::host {

/// Executes `report`; one outcome per range. Looks at `cancelled` before every 2 MiB and returns
/// nothing where it is set: the batch is then void, and what was discarded so far were zero pages.
/// Blocks for the discards. Thread-safe where `owner` is.
[[nodiscard]] std::optional<std::vector<wire::RangeOutcome>> execute_report(
    const wire::Report& report, const RamLayout& layout, RamOwner& owner,
    const std::atomic<bool>& cancelled);

/// Has memory put behind the frames of `request`; frames backed, one count per range. Ranges that
/// are not plain RAM in ascending order, and those that the host has no memory for, count 0. Null
/// `owner`: the VM is gone. Blocks; thread-safe where `owner` is.
[[nodiscard]] std::vector<std::uint32_t> execute_populate(const wire::Populate& request,
                                                          const RamLayout& layout, RamOwner* owner);

}  // namespace fileballoon::host
