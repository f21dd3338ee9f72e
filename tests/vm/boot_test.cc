// The ground that every other VM test stands on: a guest boots, its memory can be filled, checked
// and measured from outside, and nothing of it is left behind.

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/vm/kit/vm.h"

namespace fileballoon::vmkit {
namespace {

class Boot : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto reason = why_no_guest()) GTEST_SKIP() << *reason;
    std::cout << "accelerator: " << accelerator().name << " (" << accelerator().reason << ")\n";
  }
};

TEST_F(Boot, FilledMemoryIsCheckedAndShowsInTheFootprint) {
  Vm vm;
  std::cout << "guest ready after " << vm.guest().boot_seconds() << " s\n";
  const Bytes before = vm.footprint().now();
  EXPECT_GT(before, Bytes::mib(20));
  const double seconds = vm.guest().fill("a", Bytes::mib(200));
  EXPECT_GT(seconds, 0);
  EXPECT_EQ(vm.guest().check("a"), 0U);
  EXPECT_GE(vm.footprint().now(), before + Bytes::mib(150));
  vm.guest().drop("a");
  EXPECT_EQ(vm.oom_kills(), 0U);
}

TEST_F(Boot, ARebootedGuestComesBack) {
  Vm vm;
  const std::string first = vm.guest().boot_id();
  vm.guest().call("reboot");
  vm.wait_ready();
  EXPECT_NE(vm.guest().boot_id(), first);
  EXPECT_GT(vm.guest().meminfo("MemTotal"), Bytes::mib(800));
}

TEST_F(Boot, MemoryThatTheGuestDoesNotHaveIsAnOomKillThatIsSeen) {
  VmOptions options;
  options.memory = Bytes::mib(512);
  Vm vm(options);
  EXPECT_THROW(vm.guest().fill("too-much", Bytes::gib(1)), std::runtime_error);
  EXPECT_EQ(vm.oom_kills(), 1U);
  EXPECT_EQ(vm.guest().shell("echo alive"), "alive\n");
}

TEST_F(Boot, NothingIsLeftBehind) {
  std::string folder;
  pid_t pid = 0;
  {
    Vm vm;
    folder = std::filesystem::path(vm.console_log()).parent_path();
    pid = vm.pid();
    EXPECT_TRUE(std::filesystem::exists(folder));
  }
  EXPECT_FALSE(std::filesystem::exists(folder));
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(pid)));
}

}  // namespace
}  // namespace fileballoon::vmkit
