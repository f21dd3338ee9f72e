#include "guest-fs/reclaim/balloon_cgroup.h"

#include <dirent.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

namespace fileballoon::guest {
namespace {

/// The path in the line "HIERARCHY:CONTROLLERS:PATH" with these controllers.
std::string own_path(const std::string& own_cgroups, const std::string& controller) {
  std::istringstream lines(own_cgroups);
  std::string line;
  while (std::getline(lines, line)) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers == "," + controller + "," ||
        (!controller.empty() && controllers.find("," + controller + ",") != std::string::npos)) {
      return line.substr(second + 1);
    }
  }
  return "/";
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

bool contains_word(const std::string& text, const std::string& word) {
  std::istringstream words(text);
  std::string one;
  while (words >> one) {
    if (one == word) {
      return true;
    }
  }
  return false;
}

std::string executable(const std::string& proc, const std::string& pid) {
  std::array<char, 512> target{};
  const ssize_t length =
      ::readlink((proc + "/" + pid + "/exe").c_str(), target.data(), target.size());
  return length > 0 ? std::string(target.data(), static_cast<std::size_t>(length)) : "";
}

std::string joined(const std::string& root, const std::string& path) {
  return path == "/" ? root : root + path;
}

std::vector<std::string> child_directories(const std::string& directory) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  while (dir) {
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) {
      break;
    }
    const std::string name = entry->d_name;
    struct stat status {};
    if (name != "." && name != ".." && ::stat((directory + "/" + name).c_str(), &status) == 0 &&
        S_ISDIR(status.st_mode)) {
      names.push_back(name);
    }
  }
  return names;
}

}  // namespace

MemoryHierarchy find_memory_hierarchy(const std::string& mountinfo, const std::string& own_cgroups,
                                      const std::string& fallback_root) {
  MemoryHierarchy found;
  found.root = find_mount(mountinfo, "cgroup", "memory");
  if (!found.root.empty()) {
    found.v2 = false;
    found.own = own_path(own_cgroups, "memory");
    return found;
  }
  found.root = find_mount(mountinfo, "cgroup2");
  if (found.root.empty()) {
    found.root = fallback_root;
  }
  found.own = own_path(own_cgroups, "");
  if (found.root.empty()) {
    found.missing = "no cgroup file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)";
  } else if (!contains_word(read_file(found.root + "/cgroup.controllers"), "memory")) {
    found.missing = "cgroup v2 at " + found.root +
                    " has no memory controller (is cgroup_disable=memory on the kernel's command "
                    "line?)";
    found.root.clear();
  }
  return found;
}

BalloonCgroup::BalloonCgroup(MemoryHierarchy hierarchy, const std::string& proc)
    : hierarchy_(std::move(hierarchy)) {
  if (hierarchy_.root.empty()) {
    missing_ = hierarchy_.missing;
    return;
  }
  const std::string directory = joined(hierarchy_.root, hierarchy_.own);
  if (hierarchy_.own != "/" && has_memory(directory) && is_alone(directory, proc)) {
    path_ = hierarchy_.own;
    return;
  }
  move(proc);
}

bool BalloonCgroup::has_memory(const std::string& directory) const {
  return exists(directory + (hierarchy_.v2 ? "/memory.current" : "/memory.usage_in_bytes"));
}

bool BalloonCgroup::is_alone(const std::string& directory, const std::string& proc) const {
  const std::string own = executable(proc, "self");
  std::istringstream pids(read_file(directory + "/cgroup.procs"));
  std::string pid;
  bool any = false;
  while (pids >> pid) {
    any = true;
    if (executable(proc, pid) != own) {
      return false;
    }
  }
  return any && child_directories(directory).empty();
}

void BalloonCgroup::move(const std::string& proc) {
  const std::string directory = hierarchy_.root + "/" + kName;
  if (hierarchy_.v2) {
    // Harmless where it is on already; where it fails, memory.current will lack below.
    (void)write_kernel_file(hierarchy_.root + "/cgroup.subtree_control", "+memory");
  }
  if (::mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
    missing_ = "the cgroup " + directory + " cannot be made: " + std::strerror(errno) +
               " (balloonfs must be root and /sys/fs/cgroup writable)";
    return;
  }
  if (!has_memory(directory)) {
    missing_ = "the cgroup " + directory + " has no memory controller (echo +memory > " +
               hierarchy_.root + "/cgroup.subtree_control failed)";
    return;
  }
  const std::string pid = proc == "/proc" ? std::to_string(::getpid()) : "0";
  if (const int error = write_kernel_file(directory + "/cgroup.procs", pid); error != 0) {
    missing_ = "balloonfs cannot move to the cgroup " + directory + ": " + std::strerror(error);
    return;
  }
  if (!is_alone(directory, proc)) {
    missing_ =
        "other programs live in the cgroup " + directory + "; it is meant for balloonfs alone";
    return;
  }
  path_ = std::string("/") + kName;
}

std::vector<std::string> BalloonCgroup::others() const {
  std::vector<std::string> found;
  std::string parent = hierarchy_.root;
  std::istringstream parts(path_);
  std::string part;
  while (std::getline(parts, part, '/')) {
    if (part.empty()) {
      continue;
    }
    for (const std::string& name : child_directories(parent)) {
      const std::string directory = parent + "/" + name;
      if (name != part && has_memory(directory)) {
        found.push_back(directory);
      }
    }
    parent += "/" + part;
  }
  return found;
}

}  // namespace fileballoon::guest
