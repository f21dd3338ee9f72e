// Fleet: several guests on one host whose memory is limited, and who divides it between them:
// nobody, this project's daemon, or an operator with virtio-balloon. What a Mode is to one guest.
// One thread at a time, but for footprint().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/vm_bench/scenario.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::bench {

class Fleet {
 public:
  using Vms = std::vector<std::unique_ptr<vmkit::Vm>>;
  virtual ~Fleet() = default;

  /// Before the boot of each guest.
  virtual void configure(vmkit::VmOptions& options) const { (void)options; }
  /// After all have booted: from now on the host is kept within `limit`, as well as the mode can.
  virtual void start(Vms& vms, Bytes limit) {
    (void)vms;
    (void)limit;
  }
  /// Memory of the host that the mode's own processes take (the daemon, its keepers, a store in
  /// memory). Any thread.
  [[nodiscard]] virtual Bytes helpers() const { return Bytes(0); }
  /// CPU time of those processes so far, seconds.
  [[nodiscard]] virtual double helper_cpu_s() const { return 0; }

  /// What paging has done so far, of all guests.
  struct Paging {
    Bytes out;                      ///< written to stores
    Bytes in;                       ///< brought back
    std::uint64_t in_faults = 0;    ///< page-ins that a guest waited for
    std::uint64_t held_faults = 0;  ///< faults that waited for room below a ceiling
  };
  [[nodiscard]] virtual Paging paging() { return {}; }
};

/// "none", "balloon-only", "balloon-then-page", "virtio-balloon".
[[nodiscard]] const std::vector<std::string>& fleet_names();
[[nodiscard]] std::unique_ptr<Fleet> make_fleet(const std::string& mode);

}  // namespace fileballoon::bench
