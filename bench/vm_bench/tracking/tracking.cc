// Scenario "tracking": does the host's footprint follow the guest's working set? A workload whose
// working set is known goes up and down a staircase; the footprint is sampled twice a second. Half
// of the set is anonymous memory, half a file that is read again and again; another file is read
// once and never again, and after the last step the workload ends.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/recorded_run.h"
#include "bench/vm_bench/scenario.h"
#include "bench/vm_bench/series_statistics.h"
#include "bench/vm_bench/tracking/picture.h"
#include "bench/vm_bench/tracking/staircase_load.h"

namespace fileballoon::bench {
namespace {

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
  std::vector<std::string> modes() const override { return RecordedRun::modes(); }
  Row measure(const std::string& mode, const std::string& variant,
              const Settings& settings) override;
  void relate(std::vector<Row>& rows) const override;
  void draw(const std::vector<Row>& samples, const std::string& path) const override;

 private:
  std::unique_ptr<StaircaseDisk> disk_;
};

void describe(Row& row, const Series& series) {
  const double idle = row.at("idle_mib").to_number<double>();
  const Line all = fit(series, 0);
  const Line settled = fit(series, kSettle);
  const std::vector<double> settle = settle_times(series, idle, kSettledMib);
  row["slope"] = all.slope;
  row["r2"] = all.r2;
  row["slope_settled"] = settled.slope;
  row["r2_settled"] = settled.r2;
  row["mean_excess_mib"] = mean_excess(series, idle);
  row["settle_down_s"] = settle.empty() ? 0 : *std::max_element(settle.begin(), settle.end());
}

Row Tracking::measure(const std::string& mode_name, const std::string& /*variant*/,
                      const Settings& settings) {
  const std::vector<Step> steps = make_steps(settings.steps, settings.step_seconds);
  const std::uint64_t largest = *std::max_element(settings.steps.begin(), settings.steps.end());
  if (!disk_) disk_ = StaircaseLoad::make_disk(steps);
  RecordedRun run(mode_name, settings, disk_->path(),
                  "mkdir -p /mnt/disk && mount -t ext4 -o ro /dev/vda /mnt/disk",
                  settings.memory - Bytes::mib(largest) - kFixedRoom);
  StaircaseLoad load(run.vm(), largest);
  run.begin();
  std::uint64_t errors = 0;
  double completion = 0;
  double longest = 0;
  boost::json::array details;
  for (const Step& step : steps) {
    const GuestCost before = GuestCost::now(run.vm());
    StaircaseLoad::Result done = load.run(step, run.recorder());
    errors += done.errors;
    completion += done.seconds;
    longest = std::max(longest, done.longest_pass_s);
    const GuestCost cost = GuestCost::now(run.vm()) - before;
    details.push_back({{"seconds", done.seconds},
                       {"guest_cpu_s", cost.cpu_s},
                       {"disk_read_mib", cost.disk_read_mib},
                       {"refaulted_pages", cost.refaulted_pages},
                       {"pass_seconds", std::move(done.pass_seconds)}});
  }
  run.end();
  load.end();
  run.recorder().record_for(0, kAfter);

  Row row{{"mode", mode_name}};
  run.describe(row);
  describe(row, run.recorder().series());
  row["completion_s"] = completion;
  row["completion_to_none"] = nullptr;
  row["longest_pass_s"] = longest;
  row["pattern_errors"] = errors;
  row["steps"] = std::move(details);
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
