// Whether a process has a file open, which would keep what is in it.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

namespace fileballoon {

/// Any descriptor of that process whose name (proc(5), /proc/PID/fd) contains `part`. Throws
/// std::filesystem::filesystem_error where there is no such process or it is another user's.
inline bool has_open(pid_t pid, std::string_view part) {
  const std::filesystem::directory_iterator fds("/proc/" + std::to_string(pid) + "/fd");
  return std::any_of(begin(fds), end(fds), [&](const auto& fd) {
    std::error_code closed_meanwhile;
    const auto name = std::filesystem::read_symlink(fd.path(), closed_meanwhile).string();
    return name.find(part) != std::string::npos;
  });
}

}  // namespace fileballoon
