// The command line of balloonfs, as a user types it, as mount.fuse3(8) passes it on for
// `mount -t fuse.balloonfs SOURCE DIR -o …`, and as fstab spells it. Pure; thread-safe.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "fileballoon/cold_cache.h"
#include "fileballoon/deflate_mode.h"
#include "fileballoon/limits.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/channel.h"

namespace fileballoon::guest {

struct Options {
  std::string source = "balloonfs";
  std::string mount_point;
  ChannelAddress channel;
  Limits limits;
  CacheMode cache = CacheMode::proactive;
  PageChoice pages = PageChoice::automatic;
  DeflateMode deflate = DeflateMode::silent;
  std::chrono::milliseconds deflate_every{1000};
  bool foreground = false;
  bool help = false;
  bool version = false;
};

/// `arguments` without the program's name. `ram` is what percentages are of, and the most a target
/// may be. The error names the argument that is wrong.
[[nodiscard]] Result<Options> parse_options(std::span<const std::string_view> arguments, Bytes ram);

[[nodiscard]] std::string_view usage();

}  // namespace fileballoon::guest
