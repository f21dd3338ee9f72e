// The peers that a stock QEMU brings along: nothing at all, its virtio-balloon steered by QMP, and
// free page reporting.
#pragma once

#include <chrono>

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

/// The same, steered from the host as Proxmox VE does it (ProxmoxBalloon). The host is taken to be
/// as large as the guest, and the guest's minimum is half its RAM.
class VirtioBalloonStatsMode final : public Mode {
 public:
  void configure(vmkit::VmOptions& options) const override;
  /// Has the guest's driver report its statistics, as Proxmox does.
  void start(vmkit::Vm& vm) override;
  void steer() override;

 private:
  std::chrono::steady_clock::time_point next_{};
};

/// The guest tells the host of free blocks by itself, some seconds after they became free.
class FreePageReportingMode final : public Mode {
 public:
  void configure(vmkit::VmOptions& options) const override;
};

/// The same, and a guest that drops its clean page cache every 10 s, as people do by cron.
class DropCachesMode final : public Mode {
 public:
  void configure(vmkit::VmOptions& options) const override;
  void steer() override;

 private:
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace fileballoon::bench
