// Vm: one stock guest in one stock QEMU, for tests, benchmarks and the demo. The constructor boots
// it and returns when its init answers; the destructor ends QEMU and removes every file. Nothing
// outlives the process that made it. Errors carry the end of the guest's console. One thread at a
// time; construct it in a thread that outlives it.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fileballoon/bytes.h"
#include "host/qmp_client.h"
#include "tests/vm/kit/accelerator.h"
#include "tests/vm/kit/boot_snapshot.h"
#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/footprint.h"
#include "tests/vm/kit/guest_client.h"
#include "tests/vm/kit/guest_image.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::vmkit {

struct VmOptions {
  Bytes memory = Bytes::gib(1);
  unsigned cpus = 2;
  /// memory-backend-memfd,share=on; without it the RAM is private to QEMU, as is QEMU's default.
  bool shared_memory = true;
  /// QEMU's own balloon with its guest driver. Another discarder on the same RAM: for peers only.
  bool virtio_balloon = false;
  bool deflate_on_oom = false;
  bool free_page_reporting = false;
  /// The port org.fileballoon.0; without it an agent has no channel device.
  bool channel = true;
  std::string extra_cmdline;
  /// A raw image for the guest's /dev/vda; empty for none.
  std::string disk;
  InitramfsOptions initramfs;
  /// Further options of QEMU.
  std::vector<std::string> qemu_options;
  /// May go on from the end of an earlier boot of the same machine (BootSnapshot) under TCG, where
  /// a boot takes seconds. A machine with a disk, private RAM or options of its own always boots.
  bool may_skip_boot = false;
};

class Vm {
 public:
  explicit Vm(VmOptions options = {});
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  [[nodiscard]] GuestClient& guest() { return *guest_; }
  [[nodiscard]] host::QmpClient& qmp() { return *qmp_; }
  [[nodiscard]] ChildProcess& qemu() { return *qemu_; }
  [[nodiscard]] pid_t pid() const { return qemu_->pid(); }
  [[nodiscard]] Footprint& footprint() { return *footprint_; }
  [[nodiscard]] const VmOptions& options() const { return options_; }

  /// Sockets for a daemon: the agent's channel and a monitor of its own (QEMU serves one client on
  /// each).
  [[nodiscard]] std::string channel_socket() const { return dir_.file("channel"); }
  [[nodiscard]] std::string daemon_qmp_socket() const { return dir_.file("qmp-daemon"); }
  [[nodiscard]] std::string console_log() const { return dir_.file("console"); }

  /// After guest().call("reboot") or a reset: waits for the guest's init. Throws with the console.
  void wait_ready();
  /// The end of the guest's console, for a failure's report.
  [[nodiscard]] std::string console_tail(std::size_t lines = 40) const;
  /// The guest kernel's own OOM kills so far.
  [[nodiscard]] std::uint64_t oom_kills() { return guest_->vmstat("oom_kill"); }

  /// CPU time of QEMU with all its threads (under KVM the guest's included), seconds.
  [[nodiscard]] double qemu_cpu_seconds() const { return qemu_->cpu_seconds(); }

 private:
  [[nodiscard]] std::vector<std::string> command_line(const GuestKernel& kernel) const;
  /// Where a boot of this machine is or would be kept; none where it has to boot.
  [[nodiscard]] std::optional<BootSnapshot> snapshot(const GuestKernel& kernel) const;
  void start(const GuestKernel& kernel, const std::vector<std::string>& more_options = {});
  void boot(const GuestKernel& kernel);
  /// False where the snapshot turned out not to be good; it is gone then.
  [[nodiscard]] bool resume(const GuestKernel& kernel, const BootSnapshot& from);
  /// The guest died of a known defect of the emulator, not of anything of ours: boot again.
  [[nodiscard]] bool broken_by_emulator() const;
  void connect();
  [[noreturn]] void fail(const std::string& what) const;

  VmOptions options_;
  TempDir dir_;
  std::unique_ptr<ChildProcess> qemu_;
  std::unique_ptr<host::QmpClient> qmp_;
  std::unique_ptr<GuestClient> guest_;
  std::unique_ptr<Footprint> footprint_;
};

/// Writes to nearly all free memory of the guest (64 MiB or a 16th of the RAM stay, so that
/// nothing is reclaimed) and frees it: the host has memory behind nearly every frame then.
void touch_free_memory(Vm& vm);

}  // namespace fileballoon::vmkit
