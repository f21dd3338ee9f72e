// Scenario "build": a guest unpacks and compiles real sources, cleans up, and is left alone. What
// the host has to hold for that over time, at the peak, and ten seconds after the end.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "bench/vm_bench/build/build_root.h"
#include "bench/vm_bench/recorded_run.h"
#include "bench/vm_bench/scenario.h"
#include "bench/vm_bench/series_statistics.h"

namespace fileballoon::bench {
namespace {

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
  std::vector<std::string> modes() const override { return RecordedRun::modes(); }
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
  RecordedRun run(mode_name, settings, dir.file("disk.img"),
                  std::string("mkdir -p ") + kMountPoint + " && mount -t ext4 /dev/vda " +
                      kMountPoint + " && mount -t devtmpfs dev " + kMountPoint + "/dev",
                  Bytes(settings.memory.count() / kFixedShare));
  run.begin();
  const auto start = Recorder::Clock::now();
  const auto ticket = run.vm().guest().start("run", {{"command", BuildRoot::command(kMountPoint)}});
  std::optional<vmkit::GuestClient::Object> answer;
  run.recorder().record(0, [&] {
    if (!answer) answer = run.vm().guest().take(ticket);
    return !answer;
  });
  const double completion = std::chrono::duration<double>(Recorder::Clock::now() - start).count();
  if (answer->at("status").to_number<int>() != 0) {
    throw std::runtime_error("the build failed in the guest: " +
                             std::string(answer->at("output").as_string()));
  }
  run.end();
  run.recorder().record_for(0, kAfter);

  const Series& series = run.recorder().series();
  Row row{{"mode", mode_name}};
  run.describe(row);
  row["gib_min"] = row.at("gib_s").to_number<double>() / 60;
  row["peak_mib"] = peak_footprint(series);
  row["residual_mib"] = series.back().footprint_mib - row.at("idle_mib").to_number<double>();
  row["completion_s"] = completion;
  row["completion_to_none"] = nullptr;
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
