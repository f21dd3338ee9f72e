#include "guest-fs/options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <vector>

namespace fileballoon::guest {
namespace {

/// Options that mount(8), systemd and fstab add; they mean something to those programs or to the
/// kernel's mount flags, and nothing to the balloon.
constexpr std::array<std::string_view, 29> kIgnored = {
    "rw",         "defaults",   "auto",   "noauto", "nofail", "_netdev",     "dev",
    "nodev",      "suid",       "nosuid", "exec",   "noexec", "atime",       "noatime",
    "relatime",   "norelatime", "user",   "nouser", "async",  "allow_other", "default_permissions",
    "lazytime",   "nodiratime", "owner",  "users",  "group",  "sync",        "dirsync",
    "strictatime"};

struct Sizes {
  std::string_view target;
  std::string_view floor;
};

std::optional<Error> parse_every(std::string_view value, Options& options) {
  // Below, the walk would never rest; above, nobody would notice that something is reported.
  constexpr int kLeast = 100;
  constexpr int kMost = 60'000;
  int number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc{} || end != value.data() + value.size() || number < kLeast ||
      number > kMost) {
    return Error{"option 'deflate_every': write milliseconds, from " + std::to_string(kLeast) +
                 " to " + std::to_string(kMost)};
  }
  options.deflate_every = std::chrono::milliseconds(number);
  return std::nullopt;
}

std::optional<Error> parse_option(std::string_view option, Options& options, Sizes& sizes) {
  const auto equals = option.find('=');
  const std::string_view key = option.substr(0, equals);
  const std::string_view value =
      equals == std::string_view::npos ? std::string_view{} : option.substr(equals + 1);
  if (key == "channel") {
    Result<ChannelAddress> address = ChannelAddress::parse(value);
    if (!address) {
      return address.error();
    }
    options.channel = *std::move(address);
    return std::nullopt;
  }
  if (key == "target" || key == "floor") {
    (key == "target" ? sizes.target : sizes.floor) = value;
    return value.empty()
               ? std::optional(Error{"option '" + std::string(key) + "' needs a size, as in " +
                                     std::string(key) + "=512M"})
               : std::nullopt;
  }
  if (key == "cache") {
    const Result<CacheMode> mode = parse_cache_mode(value);
    if (!mode) {
      return Error{"option 'cache': " + mode.error().message};
    }
    options.cache = *mode;
    return std::nullopt;
  }
  if (key == "pages") {
    if (value != "auto" && value != "small") {
      return Error{"option 'pages' is auto or small, not '" + std::string(value) + "'"};
    }
    options.pages = value == "small" ? PageChoice::small : PageChoice::automatic;
    return std::nullopt;
  }
  if (key == "deflate") {
    const Result<DeflateMode> mode = parse_deflate_mode(value);
    if (!mode) {
      return Error{"option 'deflate': " + mode.error().message};
    }
    options.deflate = *mode;
    return std::nullopt;
  }
  if (key == "deflate_every") {
    return parse_every(value, options);
  }
  if (key == "ro") {
    return Error{"option 'ro': a read-only balloon could not take a target; leave it out"};
  }
  if (key == "subtype" || key == "fsname" || key == "comment" || key.starts_with("x-") ||
      std::find(kIgnored.begin(), kIgnored.end(), key) != kIgnored.end()) {
    return std::nullopt;
  }
  return Error{"unknown option '" + std::string(key) +
               "'; balloonfs knows channel=, target=, floor=, cache=, pages=, deflate= and "
               "deflate_every= (balloonfs --help)"};
}

std::optional<Error> parse_list(std::string_view list, Options& options, Sizes& sizes) {
  while (!list.empty()) {
    const auto comma = list.find(',');
    const std::string_view option = list.substr(0, comma);
    list = comma == std::string_view::npos ? std::string_view{} : list.substr(comma + 1);
    if (option.empty()) {
      continue;
    }
    if (auto error = parse_option(option, options, sizes)) {
      return error;
    }
  }
  return std::nullopt;
}

}  // namespace

Result<Options> parse_options(std::span<const std::string_view> arguments, Bytes ram) {
  Options options;
  options.channel = ChannelAddress::parse(kDefaultPort).value();
  Sizes sizes;
  std::vector<std::string_view> names;
  bool only_names = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (only_names || !argument.starts_with('-') || argument == "-") {
      names.push_back(argument);
    } else if (argument == "--") {
      only_names = true;
    } else if (argument == "-f" || argument == "--foreground") {
      options.foreground = true;
    } else if (argument == "-h" || argument == "--help") {
      options.help = true;
    } else if (argument == "-V" || argument == "--version") {
      options.version = true;
    } else if (argument.starts_with("-o")) {
      std::string_view list = argument.substr(2);
      if (list.empty()) {
        if (i + 1 == arguments.size()) {
          return Error{"-o needs a list of options, as in -o target=512M"};
        }
        list = arguments[++i];
      }
      if (auto error = parse_list(list, options, sizes)) {
        return *error;
      }
    } else if (argument != "-n" && argument != "-s" && argument != "-v") {  // of mount(8)
      return Error{"unknown argument '" + std::string(argument) + "' (balloonfs --help)"};
    }
  }
  if (options.help || options.version) {
    return options;
  }
  if (names.empty()) {
    return Error{"no mount point; write balloonfs MOUNTPOINT -o channel=…"};
  }
  if (names.size() > 2) {
    return Error{"too many names, the third is '" + std::string(names[2]) +
                 "'; write balloonfs [SOURCE] MOUNTPOINT"};
  }
  options.mount_point = names.back();
  if (names.size() == 2) {
    options.source = names.front();
  }

  Bytes target;
  Bytes floor;
  if (!sizes.floor.empty()) {
    const Result<Bytes> parsed = parse_size(sizes.floor, ram);
    if (!parsed) {
      return Error{"option 'floor': " + parsed.error().message};
    }
    floor = *parsed;
    target = floor;  // a floor alone is a balloon of that size
  }
  if (!sizes.target.empty()) {
    const Result<Bytes> parsed = parse_size(sizes.target, ram);
    if (!parsed) {
      return Error{"option 'target': " + parsed.error().message};
    }
    target = *parsed;
  }
  const Result<Limits> limits = make_limits(target, floor, ram);
  if (!limits) {
    return limits.error();
  }
  options.limits = *limits;
  return options;
}

std::string_view usage() {
  return "usage: balloonfs [SOURCE] MOUNTPOINT [-f] [-o OPTION[,OPTION]...]\n"
         "\n"
         "Gives this guest's unused memory back to the host, as page cache of the file\n"
         "MOUNTPOINT/balloon, which the guest reclaims by itself when it needs memory.\n"
         "\n"
         "  -o channel=CHANNEL  where the host daemon is: /dev/virtio-ports/NAME (default\n"
         "                      org.fileballoon.0), unix:PATH, or vsock:CID:PORT\n"
         "  -o target=SIZE      upper limit of the balloon; default 0, until the host sets one\n"
         "  -o floor=SIZE       part of it that is locked and never reclaimed; default 0\n"
         "  -o cache=MODE       what happens to cold page cache: off, unmapped-first, proactive "
         "or\n"
         "                      epoch; default proactive, until the host chooses another\n"
         "  -o pages=auto|small what the balloon is made of: folios of 2 MiB where the kernel has "
         "them\n"
         "                      (Linux 6.12 with EROFS), or 4 KiB pages; default auto\n"
         "  -o deflate=MODE     what the host hears when balloon pages are used again: silent "
         "(default),\n"
         "                      batched, or tell-host-first: the host backs them before\n"
         "  -o deflate_every=MS batched: least time between two reports; default 1000\n"
         "  -f, --foreground    do not become a daemon; messages go to the terminal\n"
         "  -h, --help          this text\n"
         "  -V, --version       the version\n"
         "\n"
         "SIZE: bytes, or with a suffix K, M, G, T (binary), or % of RAM.\n"
         "Also: mount -t fuse.balloonfs none MOUNTPOINT -o target=512M\n";
}

}  // namespace fileballoon::guest
