// Scenario "tracking": does the host's footprint follow the guest's working set? A workload whose
// working set is known goes up and down a staircase; the footprint is sampled twice a second. Half
// of the set is anonymous memory, half a file that is read again and again; another file is read
// once and never again, and after the last step the workload ends.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/recorder.h"
#include "bench/vm_bench/scenario.h"
#include "bench/vm_bench/series_statistics.h"
#include "bench/vm_bench/tracking/picture.h"
#include "bench/vm_bench/tracking/staircase_load.h"

namespace fileballoon::bench {
namespace {

/// The guest alone, before the workload; what it occupies at the end of that is its idle footprint.
constexpr auto kIdle = std::chrono::seconds(10);
constexpr double kIdleMeasured = 2;
/// After the workload has ended: one more step down.
constexpr auto kAfter = std::chrono::seconds(12);
/// The time that a mode has to follow a step, for the fields named ..._settled.
constexpr double kSettle = 5;
/// "Settled": within this of the idle footprint plus the working set.
constexpr double kSettledMib = 64;
/// A balloon of fixed size must leave the guest what it needs at most: its kernel, its reserves and
/// the workload's own program.
constexpr Bytes kFixedRoom = Bytes::mib(192);

class Tracking final : public Scenario {
 public:
  std::string name() const override { return "tracking"; }
  std::string summary() const override {
    return "a working set goes up and down a staircase: how closely the footprint follows";
  }
  std::vector<std::string> columns() const override {
    return {"mode",           "slope",           "r2",
            "r2_settled",     "mean_excess_mib", "gib_s",
            "settle_down_s",  "completion_s",    "completion_to_none",
            "disk_read_mib",  "guest_cpu_s",     "idle_mib",
            "pattern_errors", "oom_kills"};
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
  void draw(const std::vector<Row>& samples, const std::string& path) const override;

 private:
  std::unique_ptr<StaircaseDisk> disk_;
};

void describe(Row& row, const Series& series) {
  const double idle = idle_footprint(series, kIdleMeasured);
  const Line all = fit(series, 0);
  const Line settled = fit(series, kSettle);
  const std::vector<double> settle = settle_times(series, idle, kSettledMib);
  row["slope"] = all.slope;
  row["r2"] = all.r2;
  row["slope_settled"] = settled.slope;
  row["r2_settled"] = settled.r2;
  row["mean_excess_mib"] = mean_excess(series, idle);
  row["gib_s"] = area_gib_s(series);
  row["settle_down_s"] = settle.empty() ? 0 : *std::max_element(settle.begin(), settle.end());
  row["idle_mib"] = idle;
}

Row Tracking::measure(const std::string& mode_name, const std::string& /*variant*/,
                      const Settings& settings) {
  const std::vector<Step> steps = make_steps(settings.steps, settings.step_seconds);
  const std::uint64_t largest = *std::max_element(settings.steps.begin(), settings.steps.end());
  if (!disk_) disk_ = StaircaseLoad::make_disk(steps);
  const Stage stage = boot_for(mode_name, settings, disk_->path());
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  vm.guest().shell("mkdir -p /mnt/disk && mount -t ext4 -o ro /dev/vda /mnt/disk");
  if (mode.takes_target()) {
    // An upper limit may be all there is; a balloon that does not yield must leave room.
    mode.request(mode.yields_by_reclaim() ? settings.memory
                                          : settings.memory - Bytes::mib(largest) - kFixedRoom);
  }
  Recorder recorder(vm, mode);
  recorder.record_for(0, kIdle);

  StaircaseLoad load(vm, largest);
  const std::uint64_t read_before = vm.guest().vmstat("pgpgin");
  const std::uint64_t oom_before = vm.oom_kills();
  CpuMeter cpu(vm, mode);
  std::uint64_t errors = 0;
  double completion = 0;
  double longest = 0;
  boost::json::array step_seconds;
  for (const Step& step : steps) {
    const StaircaseLoad::Result done = load.run(step, recorder);
    errors += done.errors;
    completion += done.seconds;
    longest = std::max(longest, done.longest_pass_s);
    step_seconds.emplace_back(done.seconds);
  }
  const CpuMeter::Reading used = cpu.read();
  const std::uint64_t read = vm.guest().vmstat("pgpgin") - read_before;  // counted in KiB
  load.end();
  recorder.record_for(0, kAfter);

  Row row{{"mode", mode_name}};
  describe(row, recorder.series());
  row["completion_s"] = completion;
  row["completion_to_none"] = nullptr;
  row["longest_pass_s"] = longest;
  row["disk_read_mib"] = static_cast<double>(read) / 1024;
  row["guest_cpu_s"] = used.guest_s;
  row["agent_cpu_s"] = used.agent_s;
  row["host_cpu_s"] = used.host_s();
  row["pattern_errors"] = errors;
  row["oom_kills"] = vm.oom_kills() - oom_before;
  row["yielded_pages"] = mode.yielded_pages();
  row["step_seconds"] = std::move(step_seconds);
  row["series"] = to_json(recorder.series());
  return row;
}

void Tracking::relate(std::vector<Row>& rows) const {
  relate_to_none(rows, "completion_s", "completion_to_none");
}

void Tracking::draw(const std::vector<Row>& samples, const std::string& path) const {
  std::vector<Panel> panels;
  for (const Row& row : samples) {
    const std::string mode(row.at("mode").as_string());
    const bool drawn = std::any_of(panels.begin(), panels.end(),
                                   [&](const Panel& panel) { return panel.title == mode; });
    if (drawn) continue;
    const auto number = [&](const char* field) { return row.at(field).to_number<double>(); };
    panels.push_back({mode,
                      fmt::format("R² {:.3f}, excess {:.0f} MiB, {:.0f} GiB·s", number("r2"),
                                  number("mean_excess_mib"), number("gib_s")),
                      number("idle_mib"), series_from_json(row.at("series").as_object())});
  }
  draw_panels(path, "Host memory behind a guest, and the working set in it", panels);
}

}  // namespace

Scenario& tracking_scenario() {
  static Tracking scenario;
  return scenario;
}

}  // namespace fileballoon::bench
