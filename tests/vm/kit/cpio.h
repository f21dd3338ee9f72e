// CpioWriter: writes a cpio archive in the "newc" format, which is what the Linux kernel unpacks as
// an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst). Not thread-safe.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

namespace fileballoon::vmkit {

class CpioWriter {
 public:
  /// Throws std::system_error where `path` cannot be written.
  explicit CpioWriter(const std::string& path);

  /// Names are relative to the root, without a leading slash; folders before what they hold.
  void add_directory(std::string_view name);
  void add_file(std::string_view name, std::string_view content, unsigned mode);
  /// A copy of the host's file `source`. Throws std::system_error naming it.
  void add_copy(std::string_view name, const std::string& source, unsigned mode);
  void add_symlink(std::string_view name, std::string_view target);
  void add_character_device(std::string_view name, unsigned major, unsigned minor, unsigned mode);
  /// Writes the trailer. Throws std::system_error where anything could not be written.
  void finish();

 private:
  void add(std::string_view name, unsigned mode, std::string_view content, unsigned major = 0,
           unsigned minor = 0);
  void pad();

  std::string path_;
  std::ofstream file_;
  std::uint64_t written_ = 0;
  std::uint32_t inode_ = 1;
};

}  // namespace fileballoon::vmkit
