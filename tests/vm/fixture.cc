#include "tests/vm/fixture.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <iostream>

#include "tests/eventually.h"

namespace fileballoon {

void VmTest::SetUp() {
  if (const auto reason = vmkit::why_no_guest()) GTEST_SKIP() << *reason;
  std::cout << "accelerator: " << vmkit::accelerator().name << " (" << vmkit::accelerator().reason
            << ")\n";
}

void VmTest::TearDown() {
  if (HasFailure()) {
    if (daemon_) std::cout << "--- fileballoond's log ---\n" << daemon_->log_tail();
    for (const auto& vm : vms_) {
      std::cout << "--- end of a guest's console ---\n" << vm->console_tail();
    }
  }
  daemon_.reset();
  vms_.clear();
}

vmkit::Vm& VmTest::boot(vmkit::VmOptions options) {
  options.may_skip_boot = true;
  vms_.push_back(std::make_unique<vmkit::Vm>(std::move(options)));
  return *vms_.back();
}

vmkit::Daemon& VmTest::start_daemon(const std::string& config) {
  daemon_ = std::make_unique<vmkit::Daemon>(config);
  return *daemon_;
}

void VmTest::boot_with_balloon(vmkit::VmOptions options, const std::string& refault) {
  boot(std::move(options));
  start_daemon();
  daemon().attach(kName, vm(), refault);
  vmkit::Agent(vm()).mount();
  wait_connected();
}

void VmTest::wait_connected(const std::string& name) { daemon().wait_connected(name); }

::testing::AssertionResult VmTest::wait_for(const std::string& what,
                                            const std::function<bool()>& condition,
                                            std::chrono::seconds timeout) {
  if (eventually(condition, timeout, std::chrono::milliseconds(50))) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << "after " << timeout.count() << " s it is not so that " << what;
}

::testing::AssertionResult VmTest::wait_inflated(Bytes size) {
  vmkit::Agent agent(vm());
  auto reached = wait_for("the balloon holds " + to_string(size), [&] {
    return agent.resident() >= size && agent.number("in_flight_bytes") == 0;
  });
  if (!reached) reached << "; the agent says " << boost::json::serialize(agent.stats());
  return reached;
}

}  // namespace fileballoon
