// Scenario "rest": what a balloon costs a guest in which nothing happens: wake-ups of the agent's
// threads and CPU time, its own and the guest's, over two minutes after the balloon has been
// filled. "none" is the guest alone, whose own wake-ups the other modes' CPU time contains.

#include <chrono>
#include <stdexcept>
#include <thread>

#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInflateLimit = std::chrono::seconds(60);
/// After the balloon is full its pages are placed, and patience stretches (docs/cold-cache.md).
constexpr auto kSettle = std::chrono::seconds(15);
constexpr auto kMeasure = std::chrono::seconds(120);

class Rest final : public Scenario {
 public:
  std::string name() const override { return "rest"; }
  std::string summary() const override {
    return "a full balloon in a guest where nothing happens: wake-ups and CPU time of the agent";
  }
  std::vector<std::string> columns() const override {
    return {"mode", "agent_wakeups_per_s", "agent_cpu_percent", "guest_cpu_percent",
            "daemon_cpu_percent"};
  }
  std::vector<std::string> modes() const override {
    return {"none", "fileballoon-off", "fileballoon-proactive", "fileballoon-uffd"};
  }

  Row measure(const std::string& mode, const std::string& /*variant*/,
              const Settings& settings) override {
    Stage stage = boot_for(mode, settings);
    if (stage.mode->takes_target()) {
      stage.mode->request(settings.balloon);
      const auto deadline = Clock::now() + kInflateLimit;
      while (stage.mode->inflated() + Bytes::mib(1) < settings.balloon) {
        if (Clock::now() > deadline) {
          throw std::runtime_error("the balloon does not fill");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    }
    std::this_thread::sleep_for(kSettle);
    const auto agent = [&] { return stage.vm->guest().call("processes", {{"name", "balloonfs"}}); };
    const auto before = agent();
    CpuMeter cpu(*stage.vm, *stage.mode);
    const auto start = Clock::now();
    std::this_thread::sleep_for(kMeasure);
    const auto after = agent();
    const auto used = cpu.read();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const auto rate = [&](const char* what) {
      return (after.at(what).to_number<double>() - before.at(what).to_number<double>()) / seconds;
    };
    return {{"mode", mode},
            {"agent_wakeups_per_s", rate("context_switches")},
            {"agent_cpu_percent", 100 * rate("cpu_s")},
            {"guest_cpu_percent", 100 * used.guest_s / seconds},
            {"daemon_cpu_percent", 100 * used.helper_s / seconds}};
  }
};

}  // namespace

Scenario& rest_scenario() {
  static Rest scenario;
  return scenario;
}

}  // namespace fileballoon::bench
