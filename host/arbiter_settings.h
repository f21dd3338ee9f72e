// ArbiterSettings: how the daemon's arbiter runs; [arbiter] in the configuration.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "fileballoon/arbiter.h"

namespace fileballoon::host {

enum class ArbiterMode {
  off,      ///< targets are the operator's alone
  dry_run,  ///< says what it would do, and moves nothing
  on,
};

[[nodiscard]] Result<ArbiterMode> parse_arbiter_mode(std::string_view text);
[[nodiscard]] std::string_view to_string(ArbiterMode mode);

struct ArbiterSettings {
  ArbiterMode mode = ArbiterMode::off;
  std::optional<Bytes> limit;  ///< for all VMs together
  ArbiterConfig arbiter;       ///< the idle-memory tax
  std::chrono::milliseconds interval{1000};
  std::string lock = "/run/fileballoon/arbiter.lock";
};

}  // namespace fileballoon::host
