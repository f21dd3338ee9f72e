#include "guest-fs/reclaim/kernel_file.h"

#include <fcntl.h>
#include <sys/mount.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <sstream>

namespace fileballoon::guest {
namespace {

/// mountinfo writes space, tab, newline and backslash as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool has_option(std::string_view options, std::string_view option) {
  while (!options.empty()) {
    const auto comma = options.find(',');
    if (options.substr(0, comma) == option) {
      return true;
    }
    options = comma == std::string_view::npos ? "" : options.substr(comma + 1);
  }
  return false;
}

}  // namespace

std::string read_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  std::array<char, 8192> buffer;
  ssize_t got = 0;
  while (fd.valid() && (got = ::read(fd.get(), buffer.data(), buffer.size())) > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
  return text;
}

int write_kernel_file(const std::string& path, std::string_view text) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return errno;
  }
  return ::write(fd.get(), text.data(), text.size()) < 0 ? errno : 0;
}

int can_write(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd.valid() ? 0 : errno;
}

std::string find_mount(std::string_view mountinfo, std::string_view type, std::string_view option) {
  std::istringstream lines{std::string(mountinfo)};
  std::string line;
  while (std::getline(lines, line)) {
    // "36 35 98:0 /root /mount/point options [fields] - type source super-options"
    const auto dash = line.find(" - ");
    if (dash == std::string::npos) {
      continue;
    }
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string skipped;
    std::string root;
    std::string point;
    std::string found_type;
    std::string source;
    std::string options;
    before >> skipped >> skipped >> skipped >> root >> point;
    after >> found_type >> source >> options;
    if (found_type == type && root == "/" && (option.empty() || has_option(options, option))) {
      return unescape(point);
    }
  }
  return "";
}

Result<KernelMount> open_kernel_mount(const std::string& type) {
  const std::string mounted = find_mount(read_file("/proc/self/mountinfo"), type);
  if (!mounted.empty()) {
    return KernelMount{mounted, {}};
  }
  const UniqueFd context(::fsopen(type.c_str(), FSOPEN_CLOEXEC));
  if (context.valid() && ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
    UniqueFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (mount.valid()) {
      std::string path = "/proc/self/fd/" + std::to_string(mount.get());
      return KernelMount{std::move(path), std::move(mount)};
    }
  }
  return Error{type + " is not mounted and cannot be: " + std::strerror(errno)};
}

}  // namespace fileballoon::guest
