// BootSnapshot: a guest as it was when its init first answered, kept in the build folder, so that
// the next test of the same machine starts from there instead of booting, which takes seconds under
// TCG. Only for tests: benchmarks and the demo boot. What makes a machine the same is in the key:
// QEMU's version and command line, the guest kernel, and every byte of the initramfs.
//
// QEMU writes the state of the devices (migration to a file, with "x-ignore-shared"); RAM is copied
// from and to the memfd here, data extents only, so that a hole stays a hole and the footprint is
// that of the boot. Processes may use one folder at the same time. One thread at a time per object.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "host/qmp_client.h"

namespace fileballoon::vmkit {

class BootSnapshot {
 public:
  /// `words`: what the machine depends on, in order; `files`: files whose content it depends on.
  /// Throws std::system_error where one cannot be read.
  BootSnapshot(const std::vector<std::string>& words, const std::vector<std::string>& files);

  [[nodiscard]] bool exists() const;
  /// Keeps the running guest behind `qmp`, whose RAM is the file `ram` (a path in /proc), and lets
  /// it go on. Of the snapshots in the folder those used last stay. Throws std::runtime_error or
  /// std::system_error; there is no half a snapshot then.
  void save(host::QmpClient& qmp, const std::string& ram) const;
  /// Starts the guest in a QEMU that was started with "-incoming defer". Throws like save().
  void restore(host::QmpClient& qmp, const std::string& ram) const;
  /// Forgets it, so that the next VM boots.
  void remove() const;

 private:
  std::string folder_;
};

}  // namespace fileballoon::vmkit
