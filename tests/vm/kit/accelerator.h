// Accelerator: KVM where it really boots the stock guest kernel, else TCG. /dev/kvm that can be
// opened proves little (nested virtualisation may be half there), so it is tried once with a real
// boot, and the verdict is kept in the build folder until the host boots anew.
#pragma once

#include <string>
#include <vector>

namespace fileballoon::vmkit {

struct Accelerator {
  std::string name;    ///< "kvm" or "tcg"
  std::string reason;  ///< why this one, for people
  /// QEMU's options for it. Under TCG "rep movsb" is emulated byte by byte, so the CPU does not
  /// advertise it as fast.
  [[nodiscard]] std::vector<std::string> qemu_options() const;
};

/// Decides once per process (and once per host boot). $FILEBALLOON_ACCEL=kvm|tcg overrides.
[[nodiscard]] const Accelerator& accelerator();

/// "7.2.x", as QEMU prints it.
[[nodiscard]] std::string qemu_version();

}  // namespace fileballoon::vmkit
