// GuestImage: what a test guest boots. The stock kernel (scripts/fetch-guest-kernel.sh), and an
// initramfs made here of busybox, the static agent, the guest's init and the kernel modules wanted.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace fileballoon::vmkit {

/// The stock kernel as the fetch script left it.
struct GuestKernel {
  std::string image;    ///< path of vmlinuz
  std::string modules;  ///< folder of decompressed modules
  std::string release;  ///< what uname -r will say
};

/// Why no guest can be booted here (no kernel, no QEMU, no busybox, no agent built), or nothing. A
/// test skips itself with this text.
[[nodiscard]] std::optional<std::string> why_no_guest();

/// From $FILEBALLOON_GUEST_KERNEL, else the folder the build was configured with. Throws
/// std::runtime_error naming the remedy.
[[nodiscard]] GuestKernel find_guest_kernel();

/// Paths of what the build made.
[[nodiscard]] std::string agent_path();   ///< balloonfs-static, stripped
[[nodiscard]] std::string daemon_path();  ///< fileballoond
[[nodiscard]] std::string ctl_path();     ///< fileballoonctl

struct InitramfsOptions {
  /// EROFS, for the balloon's large pages: a distribution's kernel finds it by itself.
  bool erofs = true;
  /// By name, as in "virtio_balloon"; what they depend on is added.
  std::vector<std::string> modules;
  /// Further files: (path in the guest, path on the host, executable).
  struct File {
    std::string name;
    std::string source;
    bool executable = false;
  };
  std::vector<File> files;
};

/// Writes an initramfs to `path`. Throws std::runtime_error or std::system_error naming what is
/// missing.
void write_initramfs(const std::string& path, const GuestKernel& kernel,
                     const InitramfsOptions& options);

}  // namespace fileballoon::vmkit
