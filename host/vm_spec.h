// VmSpec: what an operator says about a VM to have it managed. The same for `attach`, for [[vm]] in
// the configuration and in the state file.
#pragma once

#include <sys/types.h>

#include <string>

#include "host/memory_settings.h"
#include "host/ram_owner.h"

namespace fileballoon::host {

struct VmSpec {
  std::string name;
  pid_t pid = 0;
  std::string channel;  ///< UNIX socket of QEMU's chardev
  std::string qmp;      ///< UNIX socket of QEMU's monitor; may be empty
  RefaultMode refault = RefaultMode::kernel;
  int band = 0;  ///< 0 is the highest
  /// The guest may have frames backed on request (deflate=tell-host-first). The memory is charged
  /// to this daemon, so a guest that nobody allowed it cannot.
  bool back_frames = false;
};

inline constexpr int kMaxBand = static_cast<int>(kBands) - 1;
inline constexpr std::size_t kMaxVmName = 64;

/// A name is 1 to 64 letters, digits, '.', '_', '-', and does not start with '-' or '.'.
[[nodiscard]] Result<void> check_vm_name(std::string_view name);
[[nodiscard]] Result<void> check_band(std::int64_t band);
[[nodiscard]] Result<void> check_weight(std::int64_t weight);

}  // namespace fileballoon::host
