// Refaults through userfaultfd: a guest that takes its memory back meets frames that only somebody
// on the host can fill. Whatever happens to the daemon just then, the guest must not hang, and must
// never see anything but zeros in what it takes.

#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <thread>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

using vmkit::Agent;

enum class Blow { none, crash, sigkill, sigstop, upgrade };

std::string name_of(const ::testing::TestParamInfo<Blow>& blow) {
  switch (blow.param) {
    case Blow::none:
      return "NothingHappens";
    case Blow::crash:
      return "Crash";
    case Blow::sigkill:
      return "SigKill";
    case Blow::sigstop:
      return "SigStop";
    case Blow::upgrade:
      return "Upgrade";
  }
  return "";
}

class Refault : public VmTest, public ::testing::WithParamInterface<Blow> {
 protected:
  void strike() {
    switch (GetParam()) {
      case Blow::none:
        break;
      case Blow::crash:
        daemon().process().signal(SIGSEGV);
        break;
      case Blow::sigkill:
        daemon().kill();
        break;
      case Blow::sigstop:
        daemon().process().signal(SIGSTOP);
        break;
      case Blow::upgrade:
        EXPECT_TRUE(daemon().terminate());
        daemon().start();
        break;
    }
  }
  void recover() {
    switch (GetParam()) {
      case Blow::crash:
        daemon().kill();
        daemon().start();
        break;
      case Blow::sigkill:
        daemon().start();
        break;
      case Blow::sigstop:
        daemon().process().signal(SIGCONT);
        break;
      case Blow::none:
      case Blow::upgrade:
        break;
    }
  }
};

// Lost otherwise: a vCPU that waits for ever for a page that nobody fills.
TEST_P(Refault, TheGuestGoesOnFillingMemory) {
  boot_with_balloon({}, "uffd");
  touch_free_memory();
  guest().fill("held", Bytes::mib(100));
  daemon().set_target(kName, Bytes::mib(600));
  ASSERT_TRUE(wait_inflated(Bytes::mib(600)));

  const auto fill = guest().start("fill", {{"name", "filler"}, {"size", Bytes::mib(450).count()}});
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  EXPECT_FALSE(guest().take(fill)) << "the fill was over before the blow; this shows nothing";
  strike();
  EXPECT_NO_THROW(guest().wait(fill, std::chrono::seconds(60))) << "the guest hangs";
  EXPECT_EQ(guest().check("filler"), 0U);
  EXPECT_EQ(guest().check("held"), 0U);
  EXPECT_EQ(vm().oom_kills(), 0U);

  // And the daemon, once it is back, serves the guest as before.
  recover();
  guest().drop("filler");
  wait_connected();
  EXPECT_TRUE(wait_inflated(Bytes::mib(600)));
  EXPECT_EQ(guest().check("held"), 0U);
}

class Keeper : public VmTest {};

// Lost otherwise: the memory of a dead VM, which a keeper that stays would hold for ever.
TEST_F(Keeper, EndsWithItsVm) {
  boot_with_balloon({}, "uffd");
  const pid_t pid = vm().pid();
  EXPECT_FALSE(vmkit::keepers_of(pid).empty())
      << "nobody keeps the userfaultfd; this shows nothing";
  vm().qemu().signal(SIGKILL);
  EXPECT_TRUE(wait_for("the keeper has ended", [&] { return vmkit::keepers_of(pid).empty(); }));
}

INSTANTIATE_TEST_SUITE_P(Blows, Refault,
                         ::testing::Values(Blow::none, Blow::crash, Blow::sigkill, Blow::sigstop,
                                           Blow::upgrade),
                         name_of);

}  // namespace
}  // namespace fileballoon
