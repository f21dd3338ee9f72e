// The peers that a stock QEMU brings along: nothing at all, its virtio-balloon steered by QMP, and
// free page reporting.
#pragma once

#include "bench/vm_bench/mode.h"

namespace fileballoon::bench {

/// A guest that is left alone.
class NoneMode final : public Mode {};

/// The classic balloon: the host sets the target over QMP, the guest's driver takes the pages, and
/// gives them back when the guest would otherwise run out of memory (deflate-on-oom).
class VirtioBalloonMode final : public Mode {
 public:
  void configure(vmkit::VmOptions& options) const override;
  [[nodiscard]] bool takes_target() const override { return true; }
  void request(Bytes size) override;
  [[nodiscard]] Bytes inflated() override;
  [[nodiscard]] std::uint64_t yielded_pages() override;
};

/// The guest tells the host of free blocks by itself, some seconds after they became free.
class FreePageReportingMode final : public Mode {
 public:
  void configure(vmkit::VmOptions& options) const override;
};

}  // namespace fileballoon::bench
