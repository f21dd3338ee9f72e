// The daemon's configuration: defaults, then the TOML file, then the command line. Reading it is
// strict: an unknown key or a bad value is an error that names the file, the line, the key and what
// may stand there. Pure but for reading the file.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "host/arbiter_settings.h"
#include "host/vm_spec.h"

namespace fileballoon::host {

inline constexpr const char* kDefaultConfigFile = "/etc/fileballoon/fileballoond.toml";
inline constexpr const char* kDefaultSocket = "/run/fileballoon/control.sock";
inline constexpr const char* kDefaultStateDir = "/run/fileballoon";
/// Not on a tmpfs: a day's writes to flash are remembered over a reboot.
inline constexpr const char* kDefaultBudgetDir = "/var/lib/fileballoon";

/// A VM that the daemon attaches by itself, as soon as its process is there.
struct ConfiguredVm {
  VmSpec spec;            ///< pid 0 where a pid file is given
  std::string pid_file;   ///< QEMU's -pidfile
  std::string footprint;  ///< as typed ("50%"); empty: all of its RAM
  std::string floor;      ///< as typed; empty: 0
  std::string minimum;    ///< as typed; empty: 0
  MemorySettings memory;  ///< but for the minimum
};

struct Config {
  std::string socket = kDefaultSocket;
  std::uint32_t socket_mode = 0600;
  std::string socket_group;  ///< empty: left as it is
  std::string state_dir = kDefaultStateDir;
  std::string log_level = "info";
  RefaultMode refault = RefaultMode::kernel;
  std::chrono::milliseconds write_timeout{10'000};  ///< of guests, and of control clients
  std::size_t max_vms = 1024;
  std::size_t max_clients = 64;
  ArbiterSettings arbiter;
  StoreSettings store;  ///< of VMs for which nothing else is said; needs --refault uffd
  std::string budget_dir = kDefaultBudgetDir;
  std::vector<ConfiguredVm> vms;
};

/// Parses `text`; `file` stands in errors.
[[nodiscard]] Result<Config> parse_config(std::string_view text, const std::string& file);
/// Reads and parses `file`.
[[nodiscard]] Result<Config> read_config(const std::string& file);
/// trace, debug, info, warning, error, off
[[nodiscard]] bool is_log_level(std::string_view level);

}  // namespace fileballoon::host
