// Scenario "build": a guest unpacks and compiles real sources, cleans up, and is left alone. What
// the host has to hold for that over time, at the peak, and ten seconds after the end.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "bench/vm_bench/build/build_root.h"
#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/recorder.h"
#include "bench/vm_bench/scenario.h"
#include "bench/vm_bench/series_statistics.h"

namespace fileballoon::bench {
namespace {

constexpr auto kIdle = std::chrono::seconds(10);
constexpr double kIdleMeasured = 2;
/// What remains is looked at this long after the end.
constexpr auto kAfter = std::chrono::seconds(10);
constexpr const char* kMountPoint = "/mnt/disk";
/// For modes that take a fixed target: half the guest's RAM is room enough for this build.
constexpr std::uint64_t kFixedShare = 2;

class Build final : public Scenario {
 public:
  std::string name() const override { return "build"; }
  std::string summary() const override {
    return "a guest unpacks and compiles sources and cleans up: what the host holds meanwhile and "
           "10 s after";
  }
  std::vector<std::string> columns() const override {
    return {"mode",         "gib_min",      "peak_mib",           "idle_mib",
            "residual_mib", "completion_s", "completion_to_none", "disk_read_mib",
            "guest_cpu_s",  "oom_kills"};
  }
  std::vector<std::string> modes() const override {
    return {"none",
            "virtio-balloon",
            "virtio-balloon-stats",
            "free-page-reporting",
            "free-page-reporting-drop-caches",
            "fileballoon-off",
            "fileballoon-unmapped-first",
            "fileballoon-proactive",
            "fileballoon-epoch"};
  }
  Row measure(const std::string& mode, const std::string& variant,
              const Settings& settings) override;
  void relate(std::vector<Row>& rows) const override;

 private:
  std::unique_ptr<BuildRoot> root_;
};

Row Build::measure(const std::string& mode_name, const std::string& /*variant*/,
                   const Settings& settings) {
  if (!root_) root_ = std::make_unique<BuildRoot>();
  const vmkit::TempDir dir("bench-build-disk");
  root_->make_image(dir.file("disk.img"));
  const Stage stage = boot_for(mode_name, settings, dir.file("disk.img"));
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  vm.guest().shell(std::string("mkdir -p ") + kMountPoint + " && mount -t ext4 /dev/vda " +
                   kMountPoint + " && mount -t devtmpfs dev " + kMountPoint + "/dev");
  if (mode.takes_target()) {
    mode.request(mode.yields_by_reclaim() ? settings.memory
                                          : Bytes(settings.memory.count() / kFixedShare));
  }
  Recorder recorder(vm, mode);
  recorder.record_for(0, kIdle);

  const std::uint64_t read_before = vm.guest().vmstat("pgpgin");
  const std::uint64_t oom_before = vm.oom_kills();
  CpuMeter cpu(vm, mode);
  const auto start = Recorder::Clock::now();
  const auto ticket = vm.guest().start("run", {{"command", BuildRoot::command(kMountPoint)}});
  std::optional<vmkit::GuestClient::Object> answer;
  recorder.record(0, [&] {
    if (!answer) answer = vm.guest().take(ticket);
    return !answer;
  });
  const double completion = std::chrono::duration<double>(Recorder::Clock::now() - start).count();
  if (answer->at("status").to_number<int>() != 0) {
    throw std::runtime_error("the build failed in the guest: " +
                             std::string(answer->at("output").as_string()));
  }
  const CpuMeter::Reading used = cpu.read();
  const std::uint64_t read = vm.guest().vmstat("pgpgin") - read_before;  // counted in KiB
  const std::uint64_t kills = vm.oom_kills() - oom_before;
  recorder.record_for(0, kAfter);

  const Series& series = recorder.series();
  const double idle = idle_footprint(series, kIdleMeasured);
  Row row{{"mode", mode_name}};
  row["gib_min"] = area_gib_s(series) / 60;
  row["peak_mib"] = peak_footprint(series);
  row["idle_mib"] = idle;
  row["residual_mib"] = series.back().footprint_mib - idle;
  row["completion_s"] = completion;
  row["completion_to_none"] = nullptr;
  row["disk_read_mib"] = static_cast<double>(read) / 1024;
  row["guest_cpu_s"] = used.guest_s;
  row["agent_cpu_s"] = used.agent_s;
  row["host_cpu_s"] = used.host_s();
  row["oom_kills"] = kills;
  row["yielded_pages"] = mode.yielded_pages();
  row["series"] = to_json(series);
  return row;
}

void Build::relate(std::vector<Row>& rows) const {
  relate_to_none(rows, "completion_s", "completion_to_none");
}

}  // namespace

Scenario& build_scenario() {
  static Build scenario;
  return scenario;
}

}  // namespace fileballoon::bench
