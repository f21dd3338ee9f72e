// Scenario "inflate": how fast memory comes back, what that costs on both sides, and what the
// guest's RAM takes on the host before, at most, and after.

#include <chrono>
#include <thread>

#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(20);
// A balloon that has not moved for so long is as large as it gets.
constexpr auto kStalled = std::chrono::seconds(4);
// Free page reporting waits 2 s after pages became free (mm/page_reporting.c, 6.12), then works in
// passes of 2 s: three passes without a fall are its end.
constexpr auto kReportingDone = std::chrono::seconds(7);
constexpr auto kSettle = std::chrono::milliseconds(500);

double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

struct Outcome {
  Bytes inflated;
  double elapsed_s = 0;
  CpuMeter::Reading cpu;
};

// A target is set; the balloon follows.
Outcome inflate_to(Mode& mode, CpuMeter& meter, Bytes target) {
  const auto start = Clock::now();
  auto last_growth = start;
  Bytes inflated = mode.inflated();
  mode.request(target);
  while (inflated < target && Clock::now() - last_growth < kStalled) {
    std::this_thread::sleep_for(kPoll);
    const Bytes now = mode.inflated();
    if (now > inflated) last_growth = Clock::now();
    inflated = now;
  }
  const auto end = inflated < target ? last_growth : Clock::now();
  return {inflated, seconds(end - start), meter.read()};
}

// Nothing is asked for; the footprint falls by itself, or does not.
Outcome watch_fall(vmkit::Vm& vm, CpuMeter& meter) {
  const auto start = Clock::now();
  auto last_fall = start;
  const Bytes first = vm.footprint().now();
  Bytes lowest = first;
  CpuMeter::Reading cpu;
  while (Clock::now() - last_fall < kReportingDone) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const Bytes now = vm.footprint().now();
    if (now + Bytes::mib(1) <= lowest) {
      lowest = now;
      last_fall = Clock::now();
      cpu = meter.read();
    }
  }
  return {first - lowest, seconds(last_fall - start), cpu};
}

class Inflate final : public Scenario {
 public:
  std::string name() const override { return "inflate"; }
  std::string summary() const override {
    return "a balloon of --balloon in an idle guest: rate, CPU, footprint before and after";
  }
  std::vector<std::string> columns() const override {
    return {"mode",
            "memory",
            "inflated_mib",
            "inflate_mib_per_s",
            "rate_to_virtio_balloon",
            "footprint_before_mib",
            "footprint_peak_mib",
            "footprint_after_mib",
            "fallen_of_inflated",
            "guest_cpu_s_per_gib",
            "host_cpu_s_per_gib"};
  }
  std::vector<std::string> modes() const override {
    return {"none", "fileballoon", "fileballoon-uffd", "virtio-balloon", "free-page-reporting"};
  }
  std::vector<std::string> variants(const std::string& mode) const override {
    if (make_mode(mode)->takes_untouched()) return {"touched", "untouched"};
    return {"touched"};
  }
  Row measure(const std::string& mode_name, const std::string& memory,
              const Settings& settings) override;
  void relate(std::vector<Row>& rows) const override;
};

Row Inflate::measure(const std::string& mode_name, const std::string& memory,
                     const Settings& settings) {
  const Stage stage = boot_for(mode_name, settings);
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  if (memory == "touched") touch_free_memory(vm);

  const Bytes before = vm.footprint().now();
  vmkit::FootprintSampler sampler(vm.footprint());
  CpuMeter meter(vm, mode);
  const Outcome outcome =
      mode.takes_target() ? inflate_to(mode, meter, settings.balloon) : watch_fall(vm, meter);
  std::this_thread::sleep_for(kSettle);
  sampler.stop();
  const Bytes after = vm.footprint().now();

  const double mib = outcome.inflated.as_mib();
  const double gib = mib / 1024;
  const auto per_gib = [&](double s) -> boost::json::value {
    if (gib <= 0) return nullptr;
    return s / gib;
  };
  Row row{{"mode", mode_name}, {"memory", memory}, {"inflated_mib", mib}};
  row["inflate_mib_per_s"] = outcome.elapsed_s > 0 ? mib / outcome.elapsed_s : 0.0;
  row["footprint_before_mib"] = before.as_mib();
  row["footprint_peak_mib"] = sampler.peak().as_mib();
  row["footprint_after_mib"] = after.as_mib();
  row["guest_cpu_s_per_gib"] = per_gib(outcome.cpu.guest_s);
  row["host_cpu_s_per_gib"] = per_gib(outcome.cpu.host_s());
  row["inflate_s"] = outcome.elapsed_s;
  row["fallen_of_inflated"] = mib > 0 && memory == "touched"
                                  ? boost::json::value((before.as_mib() - after.as_mib()) / mib)
                                  : boost::json::value(nullptr);
  row["agent_cpu_s_per_gib"] = per_gib(outcome.cpu.agent_s);
  row["qemu_cpu_s_per_gib"] = per_gib(outcome.cpu.qemu_s);
  row["daemon_cpu_s_per_gib"] = per_gib(outcome.cpu.helper_s);
  row["daemon_rss_mib"] = mode.helper_rss_mib();
  row["agent_resident_mib"] =
      vm.guest().call("processes", {{"name", "balloonfs"}}).at("resident_kib").to_number<double>() /
      1024;
  row["rate_to_virtio_balloon"] = nullptr;
  return row;
}

void Inflate::relate(std::vector<Row>& rows) const {
  for (const Row& peer : rows) {
    if (peer.at("mode") != "virtio-balloon") continue;
    const double rate = peer.at("inflate_mib_per_s").as_double();
    for (Row& row : rows) {
      if (rate > 0 && row.at("memory") == peer.at("memory")) {
        row["rate_to_virtio_balloon"] = row.at("inflate_mib_per_s").as_double() / rate;
      }
    }
  }
}

}  // namespace

Scenario& inflate_scenario() {
  static Inflate scenario;
  return scenario;
}

}  // namespace fileballoon::bench
