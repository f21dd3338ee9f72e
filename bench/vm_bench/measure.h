// Pieces that scenarios share: a guest booted for a mode, memory touched, and CPU time of guest and
// host, and the guest's reading of its disk, over a span.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bench/vm_bench/mode.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {

/// A fresh guest with its mode started. The mode ends before the guest.
struct Stage {
  std::unique_ptr<vmkit::Vm> vm;
  std::unique_ptr<Mode> mode;
};
/// `disk`: a raw image for the guest's /dev/vda; empty for none.
[[nodiscard]] Stage boot_for(const std::string& mode, const Settings& settings,
                             const std::string& disk = {});

/// Counters of a guest's kernel, which tell where a mode costs a workload time. Reading them does
/// not walk the guest's processes, so they may be read between the steps of a workload.
struct GuestCost {
  double cpu_s = 0;  ///< uptime × CPUs − idle, as the guest's kernel counts
  double disk_read_mib = 0;
  std::uint64_t refaulted_pages = 0;  ///< of files

  [[nodiscard]] static GuestCost now(vmkit::Vm& vm);
  [[nodiscard]] GuestCost operator-(const GuestCost& earlier) const;
};

/// How often the emulator has emptied a TLB that it keeps in software (QEMU's "info jit"; it has
/// one for each way of access), all CPUs of the guest together since it began; 0 where nothing is
/// emulated.
[[nodiscard]] std::uint64_t emulator_tlb_flushes(vmkit::Vm& vm);

/// For how long threads of that process were ready to run and had no CPU of the host, all together,
/// seconds since they began; 0 where the kernel does not count it.
[[nodiscard]] double waited_for_cpu_seconds(pid_t pid);

/// CPU time since the construction.
class CpuMeter {
 public:
  CpuMeter(vmkit::Vm& vm, const Mode& mode);

  struct Reading {
    double guest_s = 0;   ///< all of the guest, as GuestCost::cpu_s
    double agent_s = 0;   ///< of it, processes named balloonfs
    double qemu_s = 0;    ///< the QEMU process, all threads; it contains the guest's own work
    double helper_s = 0;  ///< fileballoond
    [[nodiscard]] double host_s() const { return qemu_s + helper_s; }
  };
  [[nodiscard]] Reading read();

 private:
  [[nodiscard]] Reading absolute();
  vmkit::Vm& vm_;
  const Mode& mode_;
  Reading start_;
};

}  // namespace fileballoon::bench
