#include "guest-fs/preflight.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "guest-fs/frame_lookup.h"
#include "guest-fs/guest_memory.h"
#include "guest-fs/log.h"

namespace fileballoon::guest {
namespace {

std::optional<Error> check_mount_point(const std::string& mount_point) {
  // statfs(2) always asks the file system, while stat(2) of a dead one is answered from the
  // attributes that the kernel still has.
  struct statfs file_system {};
  if (::statfs(mount_point.c_str(), &file_system) != 0 && errno == ENOTCONN) {
    // The mount of an agent that was killed: its pages go with it.
    log_info("detaching the dead mount of an earlier agent from " + mount_point);
    if (::umount2(mount_point.c_str(), MNT_DETACH) != 0) {
      return Error{"cannot detach the dead mount on " + mount_point + ": " + std::strerror(errno)};
    }
    return check_mount_point(mount_point);
  }
  struct stat status {};
  if (::stat(mount_point.c_str(), &status) != 0) {
    if (errno == ENOENT) {
      return Error{"mount point " + mount_point + " does not exist; create it: mkdir -p " +
                   mount_point};
    }
    return Error{"mount point " + mount_point + ": " + std::strerror(errno)};
  }
  if (!S_ISDIR(status.st_mode)) {
    return Error{"mount point " + mount_point + " is not a directory"};
  }
  struct stat parent {};
  if (::stat((mount_point + "/..").c_str(), &parent) == 0 &&
      (parent.st_dev != status.st_dev || parent.st_ino == status.st_ino)) {
    return Error{"mount point " + mount_point +
                 " is in use: something is mounted there; unmount it first or choose another"};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Error> preflight(const std::string& mount_point, const ChannelAddress& channel,
                               const PreflightPaths& paths) {
  if (::geteuid() != 0) {
    return Error{"balloonfs must run as root: it mounts, locks memory and reads frame numbers"};
  }
  if (::access(paths.fuse_device.c_str(), R_OK | W_OK) != 0) {
    return Error{"no FUSE: " + paths.fuse_device + ": " + std::strerror(errno) +
                 "; load it with 'modprobe fuse', or use a kernel with CONFIG_FUSE_FS"};
  }
  if (channel.kind == ChannelAddress::Kind::virtio_port) {
    const Result<std::string> device = find_virtio_port(channel);
    if (!device) {
      return device.error();
    }
  }
  const Result<FrameLookup> lookup = FrameLookup::open();
  if (!lookup) {
    return lookup.error();
  }
  return check_mount_point(mount_point);
}

std::vector<std::string> preflight_warnings(const PreflightPaths& paths) {
  std::vector<std::string> warnings;
  std::istringstream words(read_file(paths.command_line));
  std::string word;
  while (words >> word) {
    if (word == "init_on_free=1" || word == "init_on_free=on" || word == "init_on_free=y") {
      warnings.emplace_back(
          "the kernel runs with init_on_free: it writes every page that it frees, so a page that "
          "leaves the balloon costs the host memory at once, used or not; take init_on_free off "
          "the kernel command line (init_on_alloc is harmless)");
    } else if (word == "page_poison=1" || word == "page_poison=on") {
      warnings.emplace_back(
          "the kernel runs with page_poison: freed pages are filled with a pattern, so a page that "
          "leaves the balloon costs the host memory at once; take page_poison off the kernel "
          "command line");
    }
  }
  return warnings;
}

}  // namespace fileballoon::guest
