// Two real guests on a host with a limit: when the high band fills its memory, the low band's idle
// memory goes to it by the low guest's own balloon, and neither loses a page or kills a process.

#include <gtest/gtest.h>

#include "tests/vm/fixture.h"

namespace fileballoon {
namespace {

class ArbitratedGuests : public VmTest {
 protected:
  Bytes number(const char* name, const char* key) {
    return Bytes(daemon().stats(name).at(key).to_number<std::uint64_t>());
  }
};

TEST_F(ArbitratedGuests, PressureOfTheHighBandTakesFromTheLowBand) {
  vmkit::VmOptions options;
  options.memory = Bytes::mib(512);
  vmkit::Vm& high = boot(options);
  vmkit::Vm& low = boot(options);
  const vmkit::TempDir dir("arbiter");
  start_daemon("[arbiter]\nmode = \"on\"\nlimit = \"800M\"\nlock = \"" + dir.file("lock") + "\"\n");
  vmkit::touch_free_memory(low);
  daemon().attach("high", high, "kernel", {{"band", 0}});
  daemon().attach("low", low, "kernel", {{"band", 1}, {"minimum", "128M"}});
  vmkit::Agent(high).mount();
  vmkit::Agent(low).mount();
  wait_connected("high");
  wait_connected("low");
  const Bytes before = number("low", "footprint_bytes");
  low.guest().fill("kept", Bytes::mib(64));
  high.guest().fill("wanted", Bytes::mib(300));
  ASSERT_TRUE(wait_for("the low band has given what the high band needs", [&] {
    return number("low", "footprint_bytes") + Bytes::mib(64) < before &&
           number("high", "footprint_bytes") + number("low", "footprint_bytes") <=
               Bytes::mib(800) &&
           number("high", "wanted_footprint_bytes") >= Bytes::mib(300);
  })) << daemon().ctl({"arbiter"}).out;
  EXPECT_GE(number("low", "wanted_footprint_bytes"), Bytes::mib(128));
  EXPECT_EQ(high.guest().check("wanted"), 0U);
  EXPECT_EQ(low.guest().check("kept"), 0U);
  EXPECT_EQ(high.oom_kills() + low.oom_kills(), 0U);
}

}  // namespace
}  // namespace fileballoon
