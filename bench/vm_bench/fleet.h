// Fleet: several guests on one host whose memory is limited, and who divides it between them:
// nobody, this project's daemon, or an operator with virtio-balloon. What a Mode is to one guest.
// One thread at a time, but for footprint().
#pragma once

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
  /// Written to stores on disk so far.
  [[nodiscard]] virtual Bytes paged_out() { return Bytes(0); }
};

/// "none", "balloon-only", "balloon-then-page", "virtio-balloon".
[[nodiscard]] const std::vector<std::string>& fleet_names();
[[nodiscard]] std::unique_ptr<Fleet> make_fleet(const std::string& mode);

}  // namespace fileballoon::bench
