#include "tests/vm/kit/accelerator.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

#include "tests/eventually.h"
#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/guest_image.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::vmkit {
namespace {

constexpr auto kProbeLimit = std::chrono::seconds(15);  // KVM boots this kernel in under 2 s
constexpr auto kProbePoll = std::chrono::milliseconds(50);

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Boots the kernel under KVM without any initramfs; "Kernel panic" for want of a root file system
// is what success looks like: everything before it ran.
bool kvm_boots() {
  const TempDir dir("kvm-probe");
  const std::string console = dir.file("console");
  ChildProcess qemu({"qemu-system-x86_64",
                     "-nodefaults",
                     "-no-user-config",
                     "-display",
                     "none",
                     "-machine",
                     "q35",
                     "-accel",
                     "kvm",
                     "-cpu",
                     "host",
                     "-m",
                     "256M",
                     "-no-reboot",
                     "-kernel",
                     find_guest_kernel().image,
                     "-append",
                     "console=ttyS0 panic=-1",
                     "-serial",
                     "file:" + console},
                    dir.file("qemu.log"));
  const auto panicked = [&] {
    return tail_of(console, 60).find("Kernel panic") != std::string::npos;
  };
  (void)eventually([&] { return panicked() || !qemu.running(); }, kProbeLimit, kProbePoll);
  return panicked();
}

Accelerator tcg(std::string reason) { return {"tcg", std::move(reason)}; }

Accelerator decide() {
  if (const char* forced = std::getenv("FILEBALLOON_ACCEL")) {
    const std::string name = forced;
    if (name != "kvm" && name != "tcg") {
      throw std::runtime_error("FILEBALLOON_ACCEL is " + name + "; it may be kvm or tcg");
    }
    return {name, "FILEBALLOON_ACCEL says so"};
  }
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) return tcg("/dev/kvm cannot be opened");
  close(kvm);
  const std::string cache = std::string(FILEBALLOON_BUILD_DIR) + "/tests/vm/accelerator.cache";
  const std::string key = first_line("/proc/sys/kernel/random/boot_id");
  std::string known_key;
  std::string verdict;
  std::ifstream(cache) >> known_key >> verdict;
  if (known_key != key || (verdict != "kvm" && verdict != "tcg")) {
    verdict = kvm_boots() ? "kvm" : "tcg";
    std::ofstream(cache) << key << ' ' << verdict << '\n';
  }
  if (verdict == "kvm") return {"kvm", "KVM boots the guest kernel"};
  return tcg("/dev/kvm opens but does not boot the guest kernel");
}

}  // namespace

std::vector<std::string> Accelerator::qemu_options() const {
  if (name == "kvm") return {"-accel", "kvm", "-cpu", "host"};
  return {"-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"};
}

const Accelerator& accelerator() {
  static const Accelerator chosen = decide();
  return chosen;
}

std::string qemu_version() {
  const std::string text = run_command({"qemu-system-x86_64", "--version"}).out;
  const auto at = text.find("version ");
  if (at == std::string::npos) return "unknown";
  return text.substr(at + 8, text.find_first_of(" \n(", at + 8) - at - 8);
}

}  // namespace fileballoon::vmkit
