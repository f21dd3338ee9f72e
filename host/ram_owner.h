// RamOwner: the one component that discards, fills and measures a VM's RAM ("one owner"). The
// daemon holds one per VM and knows nothing of how refaults are answered; which kind is made is
// decided at attach (--refault). Sessions and reports are tested against a fake of it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fileballoon/ram_layout.h"
#include "uffd/discard.h"
#include "uffd/guest_ram.h"

namespace fileballoon::host {

/// Who answers the first touch of an absent frame.
enum class RefaultMode {
  kernel,  ///< the kernel, with a zero page: no latency added
  uffd,    ///< the VM's fault keeper, through a userfaultfd in the VMM
};

[[nodiscard]] std::string_view to_string(RefaultMode mode);
[[nodiscard]] Result<RefaultMode> parse_refault_mode(std::string_view text);

class RamOwner {
 public:
  RamOwner() = default;
  RamOwner(const RamOwner&) = delete;
  RamOwner& operator=(const RamOwner&) = delete;
  virtual ~RamOwner() = default;

  /// Verifies and discards; blocks for the kernel's work. Thread-safe.
  [[nodiscard]] virtual DiscardOutcome discard(const BackingRange& range) = 0;
  /// Puts memory behind every page of `range`, zero where there was none; what is there stays as it
  /// is. Blocks; thread-safe. 0 or an errno value: ENOTSUP where this kind of owner cannot.
  [[nodiscard]] virtual int populate(const BackingRange& range) = 0;
  /// Whether populate() works at all.
  [[nodiscard]] virtual bool can_populate() const = 0;
  /// Memory really behind the RAM now (allocated blocks). Thread-safe, cheap.
  [[nodiscard]] virtual Bytes footprint() const = 0;
  /// Size of the RAM: all backings. Constant.
  [[nodiscard]] virtual Bytes size() const = 0;
  /// Where the fault keeper that answers this VM's refaults takes orders, those of the pager
  /// (uffd/pager/paging_client.h) among them; empty where the kernel answers them. Constant.
  [[nodiscard]] virtual std::string keeper_socket() const { return {}; }
  /// The VM is being detached for good: when this owner ends, nothing of it may stay behind. (When
  /// only the daemon ends, what answers the guest's faults stays.)
  virtual void give_back() {}
};

/// RamOwner::populate() where the kernel answers refaults, so that memory may appear unannounced.
[[nodiscard]] int populate_backing(const GuestRam& ram, const BackingRange& range);

/// Takes over `ram` for the VM. Fails, by name, where `mode` is not to be had for this VM. Where
/// the kernel answers refaults and no userfaultfd can be had, discards are not write-protected;
/// `warnings` then says so, and why. `layout` is the RAM that the owner may touch.
[[nodiscard]] Result<std::unique_ptr<RamOwner>> make_ram_owner(RefaultMode mode, GuestRam ram,
                                                               const RamLayout& layout,
                                                               std::vector<std::string>& warnings);

/// Whether `warning` is the one of make_ram_owner(). It holds for one attachment: a later one, by a
/// daemon that was started anew, may have what this one lacked.
[[nodiscard]] bool is_about_protection(std::string_view warning);

}  // namespace fileballoon::host
