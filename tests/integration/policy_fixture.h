// Fixtures of tests about a VM's memory policy: what the daemon says of it, and a VM whose frames
// can be paged out.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "tests/integration/daemon_fixture.h"
#include "tests/integration/uffd_stand_in.h"

namespace fileballoon::host {

namespace json = boost::json;

inline constexpr std::uint64_t kPages = kRam.whole_pages();

inline Bytes bytes_in(const json::object& object, std::string_view key) {
  return Bytes(object.at(key).to_number<std::uint64_t>());
}

class PolicyTest : public DaemonTest {
 protected:
  json::object memory(const std::string& name = "vm1") {
    return stats(name).at("memory").as_object();
  }
  std::string state(const std::string& name = "vm1") {
    return std::string(memory(name).at("state").as_string());
  }
  bool reaches(const std::string& wanted, std::chrono::milliseconds patience = 10s) {
    return eventually([&] { return state() == wanted; }, patience);
  }
  /// What the daemon says to a verb that it should refuse.
  std::string refusal(std::vector<std::string> words) {
    const Output output = ctl(std::move(words));
    EXPECT_EQ(output.status, 1) << output.text;
    return output.error;
  }
  ScriptedGuest guest{path("channel.sock")};
};

/// Its keeper ends with it.
class PagedVm : public PolicyTest {
 protected:
  ~PagedVm() override {
    vmm.kill_and_wait();  // its keeper ends with it
  }
  Output attach_paged(std::vector<std::string> store) {
    std::vector<std::string> words = {
        "attach",    "vm1",          "--pid",     std::to_string(vmm.pid()),
        "--channel", guest.socket(), "--refault", "uffd"};
    words.insert(words.end(), store.begin(), store.end());
    return ctl(words);
  }
  /// Attached with a store in a folder of the test, all pages holding a pattern.
  void start_paged(std::vector<std::string> more = {}) {
    std::filesystem::create_directory(path("store"));
    start_paged_on(path("store"), std::move(more));
  }
  void start_paged_on(const std::string& store, std::vector<std::string> more = {}) {
    start();
    ASSERT_EQ(vmm.ask("fill 0 16384"), "ok");
    more.insert(more.end(), {"--store-path", store});
    const Output done = attach_paged(std::move(more));
    ASSERT_EQ(done.status, 0) << done.error;
    ASSERT_TRUE(guest.connect());
    guest.send(wire::Stats{{{wire::StatKey::resident_pages, 0}}});
    ASSERT_TRUE(eventually([&] { return paging().at("available").as_bool(); }));
  }
  json::object paging() { return stats("vm1").at("paging").as_object(); }
  Bytes paged() {
    const json::object now = paging();
    return now.contains("paged_bytes") ? bytes_in(now, "paged_bytes") : Bytes(0);
  }
  void expect_pattern() {
    EXPECT_EQ(vmm.ask("check 0 16384"), "0") << "a page came back as something else";
    EXPECT_EQ(vmm.ask("errors"), "0");
  }
  testing::StandIn vmm{{"--quiet"}};
};

}  // namespace fileballoon::host
