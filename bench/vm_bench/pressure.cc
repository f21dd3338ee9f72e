// Scenario "pressure": how much a guest that suddenly needs its memory pays for the balloon. The
// balloon is inflated; then one process fills memory with a pattern, and every page of it is
// verified. "untouched": a guest that has just booted, so that with and without a balloon the host
// backs what is filled. "touched": all of the guest's memory has been used before, so that without
// a balloon the host has it still, and with one must find again what it was given: the harder
// comparison, and what overcommitting costs.

#include <chrono>
#include <thread>

#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInflateLimit = std::chrono::seconds(60);
// Free page reporting works in passes of 2 s (mm/page_reporting.c, 6.12).
constexpr auto kStill = std::chrono::milliseconds(2500);
constexpr auto kStillLimit = std::chrono::seconds(30);

struct Counters {
  std::uint64_t stolen = 0;  // pages that the guest's reclaim has taken, by whatever way
  std::uint64_t oom_kills = 0;
  std::uint64_t yielded = 0;    // by the balloon
  std::uint64_t reclaimed = 0;  // of these, by reclaim
};

// Every mode begins when its guest's footprint has come to rest.
void wait_until_still(vmkit::Vm& vm) {
  const auto deadline = Clock::now() + kStillLimit;
  Bytes last = vm.footprint().now();
  auto since = Clock::now();
  while (Clock::now() - since < kStill && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const Bytes now = vm.footprint().now();
    if (now + Bytes::mib(1) <= last || last + Bytes::mib(1) <= now) {
      last = now;
      since = Clock::now();
    }
  }
}

Counters read_counters(vmkit::Vm& vm, Mode& mode) {
  const auto numbers = vm.guest().call("numbers");
  const auto& vmstat = numbers.at("vmstat").as_object();
  const auto value = [&](std::string_view name) {
    const auto* found = vmstat.if_contains(name);
    return found == nullptr ? 0 : found->to_number<std::uint64_t>();
  };
  return {value("pgsteal_kswapd") + value("pgsteal_direct") + value("pgsteal_khugepaged") +
              value("pgsteal_proactive"),
          value("oom_kill"), mode.yielded_pages(), mode.reclaimed_pages()};
}

class Pressure final : public Scenario {
 public:
  std::string name() const override { return "pressure"; }
  std::string summary() const override {
    return "a process fills --fill in a guest with a balloon of --balloon: time, losses, reclaim";
  }
  std::vector<std::string> columns() const override {
    return {"mode",
            "memory",
            "fill_s",
            "fill_to_none",
            "oom_kills",
            "pattern_errors",
            "reclaimed_balloon_pages",
            "reclaimed_other_pages",
            "inflated_mib",
            "footprint_before_mib",
            "footprint_after_mib"};
  }
  std::vector<std::string> modes() const override {
    return {"none", "fileballoon", "fileballoon-uffd", "virtio-balloon", "free-page-reporting"};
  }
  std::vector<std::string> variants(const std::string& mode) const override {
    // Free page reporting without anything touched is a guest left alone.
    if (mode == "free-page-reporting") return {"touched"};
    return {"touched", "untouched"};
  }
  Row measure(const std::string& mode, const std::string& memory,
              const Settings& settings) override;
  void relate(std::vector<Row>& rows) const override;
};

Row Pressure::measure(const std::string& mode_name, const std::string& memory,
                      const Settings& settings) {
  const Stage stage = boot_for(mode_name, settings);
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  if (memory == "touched") touch_free_memory(vm);
  if (mode.takes_target()) {
    mode.request(settings.balloon);
    const auto deadline = Clock::now() + kInflateLimit;
    while (mode.inflated() < settings.balloon && Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  wait_until_still(vm);
  const Bytes inflated = mode.inflated();
  const Bytes footprint = vm.footprint().now();
  const Counters before = read_counters(vm, mode);

  Row row{{"mode", mode_name}, {"memory", memory}};
  // A filler that the OOM killer takes is a result, not a failure of the benchmark.
  try {
    row["fill_s"] = vm.guest().fill("filler", settings.fill);
    row["pattern_errors"] = vm.guest().check("filler");
  } catch (const std::runtime_error& error) {
    if (vm.oom_kills() == before.oom_kills) throw;
    row["fill_s"] = nullptr;
    row["pattern_errors"] = nullptr;
  }
  const Counters after = read_counters(vm, mode);
  const std::uint64_t yielded = after.yielded - before.yielded;
  const std::uint64_t stolen = after.stolen - before.stolen;
  const std::uint64_t balloon_stolen = after.reclaimed - before.reclaimed;
  row["oom_kills"] = after.oom_kills - before.oom_kills;
  row["reclaimed_balloon_pages"] = yielded;
  row["reclaimed_other_pages"] = stolen > balloon_stolen ? stolen - balloon_stolen : 0;
  row["inflated_mib"] = inflated.as_mib();
  row["footprint_before_mib"] = footprint.as_mib();
  row["footprint_after_mib"] = vm.footprint().now().as_mib();
  row["fill_to_none"] = nullptr;
  return row;
}

void Pressure::relate(std::vector<Row>& rows) const {
  for (const Row& none : rows) {
    if (none.at("mode") != "none" || !none.at("fill_s").is_double()) continue;
    for (Row& row : rows) {
      if (row.at("fill_s").is_double() && row.at("memory") == none.at("memory")) {
        row["fill_to_none"] = row.at("fill_s").as_double() / none.at("fill_s").as_double();
      }
    }
  }
}

}  // namespace

Scenario& pressure_scenario() {
  static Pressure scenario;
  return scenario;
}

}  // namespace fileballoon::bench
