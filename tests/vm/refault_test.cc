// Refaults through userfaultfd: a guest that takes its memory back meets frames that only somebody
// on the host can fill. Whatever happens to the daemon just then, the guest must not hang, and must
// never see anything but zeros in what it takes. One guest takes all the blows, one after the
// other.

#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <iostream>
#include <string>
#include <thread>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

// What happens to the daemon while the guest fills memory, and what brings it back afterwards.
struct Blow {
  std::string name;
  std::function<void(vmkit::Daemon&)> strike;
  std::function<void(vmkit::Daemon&)> recover;
};

void nothing(vmkit::Daemon& /*daemon*/) {}

const std::vector<Blow>& blows() {
  static const std::vector<Blow> all{
      {"nothing happens", nothing, nothing},
      {"it crashes", [](auto& daemon) { daemon.process().signal(SIGSEGV); },
       [](auto& daemon) {
         daemon.kill();  // reaps what is left
         daemon.start();
       }},
      {"SIGKILL", [](auto& daemon) { daemon.kill(); }, [](auto& daemon) { daemon.start(); }},
      {"SIGSTOP", [](auto& daemon) { daemon.process().signal(SIGSTOP); },
       [](auto& daemon) { daemon.process().signal(SIGCONT); }},
      {"an upgrade",
       [](auto& daemon) {
         EXPECT_TRUE(daemon.terminate());
         daemon.start();
       },
       nothing}};
  return all;
}

class Refault : public VmTest {
 protected:
  // Lost otherwise: a vCPU that waits for ever for a page that nobody fills.
  void fill_across(const Blow& blow) {
    const auto fill =
        guest().start("fill", {{"name", "filler"}, {"size", Bytes::mib(450).count()}});
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    EXPECT_FALSE(guest().take(fill)) << "the fill was over before the blow; this shows nothing";
    blow.strike(daemon());
    ASSERT_NO_THROW(guest().wait(fill, std::chrono::seconds(60))) << "the guest hangs";
    EXPECT_EQ(guest().check("filler"), 0U);
    EXPECT_EQ(guest().check("held"), 0U);
    EXPECT_EQ(vm().oom_kills(), 0U);

    // And the daemon, once it is back, serves the guest as before.
    blow.recover(daemon());
    guest().drop("filler");
    wait_connected();
    ASSERT_TRUE(wait_inflated(Bytes::mib(600)));
    EXPECT_EQ(guest().check("held"), 0U);
  }
};

TEST_F(Refault, TheGuestGoesOnFillingMemoryWhateverHappensToTheDaemonAndTheKeeperEndsWithIt) {
  boot_with_balloon({}, "uffd");
  touch_free_memory();
  guest().fill("held", Bytes::mib(100));
  daemon().set_target(kName, Bytes::mib(600));
  ASSERT_TRUE(wait_inflated(Bytes::mib(600)));
  for (const Blow& blow : blows()) {
    SCOPED_TRACE("the daemon: " + blow.name);
    fill_across(blow);
    std::cout << "the daemon: " << blow.name << ": " << (HasFailure() ? "FAILED" : "ok") << '\n';
    if (HasFailure()) {
      return;  // the next blow would meet a guest that this one has hurt
    }
  }

  // Lost otherwise: the memory of a dead VM, which a keeper that stays would hold for ever.
  const pid_t pid = vm().pid();
  EXPECT_FALSE(vmkit::keepers_of(pid).empty())
      << "nobody keeps the userfaultfd; this shows nothing";
  vm().qemu().signal(SIGKILL);
  EXPECT_TRUE(wait_for("the keeper has ended", [&] { return vmkit::keepers_of(pid).empty(); }));
}

}  // namespace
}  // namespace fileballoon
