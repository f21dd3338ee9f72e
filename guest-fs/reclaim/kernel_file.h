// Reading and writing the kernel's files with the errno value kept, and finding (or making) a mount
// of one of the kernel's file systems. Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

/// The whole file; empty where it cannot be read. For /proc and /sys.
[[nodiscard]] std::string read_file(const std::string& path);
/// 0 or an errno value. One write(2): the kernel takes one command at a time.
[[nodiscard]] int write_kernel_file(const std::string& path, std::string_view text);
/// 0, or the errno value that opening it for writing gives.
[[nodiscard]] int can_write(const std::string& path);

/// A mounted kernel file system.
struct KernelMount {
  std::string path;
  UniqueFd detached;  ///< holds a mount of our own that no other process sees
};

/// The first mount of `type` in `mountinfo` (the text of /proc/self/mountinfo) whose super block
/// options contain `option`, if one is asked for.
[[nodiscard]] std::string find_mount(std::string_view mountinfo, std::string_view type,
                                     std::string_view option = "");

/// Finds a mount of `type`, else makes a detached one (fsopen(2), Linux 5.2): nothing appears in
/// the guest's mount table and it is gone with the process.
[[nodiscard]] Result<KernelMount> open_kernel_mount(const std::string& type);

}  // namespace fileballoon::guest
