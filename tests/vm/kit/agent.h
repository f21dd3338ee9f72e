// Agent: balloonfs inside a guest of the kit, as a user of that guest sees it: mounted, asked
// through its files, killed, mounted again. One thread at a time.
#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "fileballoon/bytes.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::vmkit {

class Agent {
 public:
  static constexpr const char* kMountPoint = "/mnt/balloon";

  explicit Agent(Vm& vm) : vm_(vm) {}

  /// Mounts balloonfs (with `options` after -o) and waits until its files answer. Throws with what
  /// it said. `how`: further arguments of the guest's verb "spawn": "uid", "without_capabilities".
  void mount(const std::string& options = {}, boost::json::object how = {});
  /// Waits for a mount that somebody else has started.
  void wait_mounted();
  void unmount();
  /// SIGKILL to every process of the agent, and clears the dead mount away.
  void kill();

  /// What its processes have said since the boot.
  [[nodiscard]] std::string log();
  /// The `stats` file.
  [[nodiscard]] boost::json::object stats();
  [[nodiscard]] std::uint64_t number(std::string_view name);
  [[nodiscard]] Bytes resident() { return Bytes(number("resident_bytes")); }
  /// Writes the `target` or `floor` file.
  void set_target(Bytes size);
  void set_floor(Bytes size);

 private:
  [[nodiscard]] bool mounted();
  [[nodiscard]] std::string path(std::string_view file) const;
  Vm& vm_;
};

}  // namespace fileballoon::vmkit
