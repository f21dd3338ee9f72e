// What goes into the arbiter and what comes out of it, as plain values. The daemon fills these from
// /proc, cgroups and the guests' STATS; bench/arbiter_sim fills them from synthetic guests.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "fileballoon/bytes.h"

namespace fileballoon {

/// Service bands: 0 is served first and gives last.
inline constexpr unsigned kBands = 8;
/// The weight of a VM for which nobody chose one; VMs of a band share by weight when it is short.
inline constexpr std::uint32_t kDefaultWeight = 100;
inline constexpr std::uint32_t kMaxWeight = 1'000'000;

/// What an operator decides about a VM. Make it with make_vm_settings().
struct VmSettings {
  Bytes ram;
  Bytes minimum;  ///< never ordered below this footprint
  Bytes ceiling;  ///< never ordered above it: what mem-set asked for, else RAM
  unsigned band = 0;
  std::uint32_t weight = kDefaultWeight;
  bool can_page = false;  ///< the VM's policy and its pager allow force
  bool operator==(const VmSettings&) const = default;
};

/// Checks settings: 0 <= minimum <= ceiling <= ram, ram > 0, band and weight in range. Rounds to
/// whole pages. The error names the numbers and what to change.
[[nodiscard]] Result<VmSettings> make_vm_settings(VmSettings settings);

/// What was seen of one VM at one moment.
struct VmReport {
  Bytes footprint;  ///< host memory really behind the guest's RAM, measured on the backing
  /// The guest's numbers below are fresh. Without them all of the footprint counts as in use.
  bool guest_known = false;
  /// MemAvailable of the guest. It counts resident balloon pages, which are clean page cache, so
  /// RAM minus this is what the guest uses whatever the size of its balloon.
  Bytes available;
  Bytes deflated;  ///< balloon pages that the guest's reclaim took since the previous report
  /// Memory of the footprint not touched lately, where the host measures that; replaces
  /// `available`.
  std::optional<Bytes> idle;
  Bytes paged;  ///< content of the guest that lies in a store now
  /// Of what lay there, came back since the previous report because the guest touched it.
  Bytes asked_back;
};

/// What was seen of the host.
struct HostReport {
  Bytes available;             ///< MemAvailable
  std::optional<Bytes> limit;  ///< configured: the most that all VMs together may take
  double psi_some = 0;         ///< memory pressure, some, avg10, percent
  double psi_full = 0;         ///< memory pressure, full, avg10, percent
};

/// How much memory the host has left, with the names ESX gave to these states.
enum class PressureLevel { high, soft, hard, low };

/// Why a VM has the target that it has.
enum class TargetReason : std::uint8_t {
  starting,       ///< attached; no tick yet
  settled,        ///< has what the plan gives it
  within_band,    ///< the plan differs by too little to be worth an order
  holding,        ///< the plan is lower, but the guest took memory a moment ago
  fast_deflate,   ///< raised at once: the guest took memory back
  raised_need,    ///< raised: the guest uses more
  raised_calm,    ///< raised: pressure is gone
  lowered_idle,   ///< lowered by will: idle memory goes to others
  lowered_need,   ///< lowered below its need: its band is short, or a higher one is
  waiting,        ///< gets more as soon as others have given it
  at_minimum,     ///< only its minimum is left to it
  stuck_paging,   ///< gave nothing by will; the rest is taken by force
  stuck_refused,  ///< gave nothing, and may not be forced: the plan counts its memory as taken
};

/// The order for one VM.
struct VmDecision {
  Bytes target;    ///< footprint wanted now
  Bytes goal;      ///< footprint planned, reached when others have given
  Bytes need;      ///< what the guest is believed to need
  Bytes by_force;  ///< part of what is above the target that may be paged out now
  TargetReason reason = TargetReason::starting;
};

/// What one tick came to, for the whole host.
struct TickSummary {
  PressureLevel level = PressureLevel::high;
  Bytes capacity;  ///< what the host has for VMs: their footprints and what is available, or limit
  Bytes budget;    ///< the part that is planned for; the rest is kept free for bursts
  Bytes footprints;                     ///< sum
  Bytes targets;                        ///< sum; at most `capacity` unless `shortage` is above zero
  Bytes needs;                          ///< sum
  Bytes shortage;                       ///< by how much the minimums alone exceed the capacity
  std::array<Bytes, kBands> lacking{};  ///< by how much the plan leaves each band below its need
  std::uint32_t changed = 0;            ///< VMs with a new target
};

}  // namespace fileballoon
