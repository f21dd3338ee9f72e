// Preflight: everything that can be known to be missing before the file system is mounted, so that
// the user gets one sentence that names the thing and the remedy. Called once, by the program.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fileballoon/result.h"
#include "guest-fs/channel.h"

namespace fileballoon::guest {

/// Where to look; tests point it elsewhere.
struct PreflightPaths {
  std::string fuse_device = "/dev/fuse";
  std::string command_line = "/proc/cmdline";
};

/// Root, /dev/fuse, the channel's device, the mount point. A mount point on which a killed agent
/// left its dead mount is detached here. Nothing: all is there.
[[nodiscard]] std::optional<Error> preflight(const std::string& mount_point,
                                             const ChannelAddress& channel,
                                             const PreflightPaths& paths = {});

/// Kernel settings that make the balloon cost more than it should, as sentences for the log.
[[nodiscard]] std::vector<std::string> preflight_warnings(const PreflightPaths& paths = {});

}  // namespace fileballoon::guest
