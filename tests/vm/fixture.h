// VmTest: what the VM tests share. It skips where no guest can be booted, ends daemons and guests
// in the right order whatever happens, and shows consoles and logs when a test has failed.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/vm/kit/agent.h"
#include "tests/vm/kit/daemon.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon {

class VmTest : public ::testing::Test {
 protected:
  static constexpr const char* kName = "guest";

  void SetUp() override;
  void TearDown() override;

  vmkit::Vm& boot(vmkit::VmOptions options = {});
  vmkit::Daemon& start_daemon(const std::string& config = {});
  [[nodiscard]] vmkit::Vm& vm() { return *vms_.front(); }
  [[nodiscard]] vmkit::GuestClient& guest() { return vm().guest(); }
  [[nodiscard]] vmkit::Daemon& daemon() { return *daemon_; }

  /// Boots, starts a daemon, attaches, mounts the agent, and waits until they are connected.
  void boot_with_balloon(vmkit::VmOptions options = {}, const std::string& refault = "kernel");
  void wait_connected(const std::string& name = kName);

  void touch_free_memory() { vmkit::touch_free_memory(vm()); }

  /// Waits until `condition` holds; a test failure naming `what` where it does not in time.
  ::testing::AssertionResult wait_for(const std::string& what,
                                      const std::function<bool()>& condition,
                                      std::chrono::seconds timeout = std::chrono::seconds(60));
  /// Waits until the guest's balloon holds at least `size`.
  ::testing::AssertionResult wait_inflated(Bytes size);
  [[nodiscard]] Bytes discarded(const std::string& name = kName) {
    return Bytes::pages(daemon().counter(name, "frames_discarded"));
  }

 private:
  std::unique_ptr<vmkit::Daemon> daemon_;
  std::vector<std::unique_ptr<vmkit::Vm>> vms_;
};

}  // namespace fileballoon
