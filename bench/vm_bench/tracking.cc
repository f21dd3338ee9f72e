// Scenario "tracking": does the host's footprint follow the guest's working set? A workload whose
// working set is known goes up and down a staircase; the footprint is sampled twice a second. Half
// of the set is anonymous memory, half a file that is read again and again; another file is read
// once and never again, and after the last step the workload ends.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <thread>

#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/scenario.h"
#include "tests/vm/guest/staircase.h"
#include "tests/vm/kit/child_process.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// A working set and passes over it, chosen so that a step is about 10 s long under TCG; the
/// workload takes as long as it takes to make them.
struct Step {
  std::uint64_t mib;
  std::uint64_t passes;
};
constexpr Step kSteps[] = {{100, 64}, {400, 36}, {700, 24}, {400, 36},
                           {100, 64}, {600, 26}, {200, 50}};
constexpr std::uint64_t kLargest = 700;
constexpr auto kSample = std::chrono::milliseconds(500);
/// The guest alone, before the workload; what it occupies then is its idle footprint.
constexpr auto kIdle = std::chrono::seconds(12);
constexpr auto kIdleMeasured = std::chrono::seconds(2);
/// After the workload has ended.
constexpr auto kAfter = std::chrono::seconds(12);
/// The time that a mode has to follow a step; samples later than that make slope and R².
constexpr auto kSettle = std::chrono::seconds(5);
/// "Settled": within this of the idle footprint plus the working set.
constexpr double kSettledMib = 64;
/// A balloon of fixed size must leave the guest what it needs at most.
constexpr Bytes kFixedRoom = Bytes::mib(900);

struct Sample {
  double time_s = 0;
  double working_set_mib = 0;
  double footprint_mib = 0;
  double in_step_s = 0;
  std::size_t step = 0;
};

double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

std::uint64_t vmstat_of(vmkit::Vm& vm, const char* name) { return vm.guest().vmstat(name); }

/// Samples the footprint on a fixed grid and lets the mode steer, while something goes on.
class Recorder {
 public:
  Recorder(vmkit::Vm& vm, Mode& mode) : vm_(vm), mode_(mode) {}

  /// `more`: asked after each sample.
  template <class More>
  void record(double working_set_mib, More more) {
    const auto begin = Clock::now();
    do {
      mode_.steer();
      const auto now = Clock::now();
      samples_.push_back({seconds(now - start_), working_set_mib, vm_.footprint().now().as_mib(),
                          seconds(now - begin), step_});
      next_ = std::max(next_ + kSample, now);
      // In small pieces: the end of a step must be seen when it comes.
      while (Clock::now() < next_ && more()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    } while (more());
    ++step_;
  }
  void record_for(double working_set_mib, Clock::duration length) {
    const auto end = Clock::now() + length;
    record(working_set_mib, [&] { return Clock::now() < end; });
  }
  [[nodiscard]] const std::vector<Sample>& samples() const { return samples_; }

 private:
  vmkit::Vm& vm_;
  Mode& mode_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_;
  std::size_t step_ = 0;
  std::vector<Sample> samples_;
};

struct Line {
  double slope = 0;
  double r2 = 0;
};

/// Least squares of footprint over working set, of the samples at least `after` into their step.
Line fit(const std::vector<Sample>& samples, double after) {
  double n = 0;
  double sx = 0;
  double sy = 0;
  double sxx = 0;
  double syy = 0;
  double sxy = 0;
  for (const Sample& s : samples) {
    if (s.in_step_s < after) continue;
    n += 1;
    sx += s.working_set_mib;
    sy += s.footprint_mib;
    sxx += s.working_set_mib * s.working_set_mib;
    syy += s.footprint_mib * s.footprint_mib;
    sxy += s.working_set_mib * s.footprint_mib;
  }
  const double vx = n * sxx - sx * sx;
  const double vy = n * syy - sy * sy;
  const double cov = n * sxy - sx * sy;
  if (vx <= 0 || vy <= 0) return {};
  return {cov / vx, cov * cov / (vx * vy)};
}

/// The longest that a step down took to show; a step that never did counts with its length.
double settle_down(const std::vector<Sample>& samples, double idle) {
  double worst = 0;
  for (std::size_t i = 1; i < samples.size(); ++i) {
    const bool begins = samples[i].step != samples[i - 1].step;
    if (!begins || samples[i].working_set_mib >= samples[i - 1].working_set_mib) continue;
    double took = 0;
    for (std::size_t j = i; j < samples.size() && samples[j].step == samples[i].step; ++j) {
      took = samples[j].in_step_s;
      if (samples[j].footprint_mib - idle - samples[j].working_set_mib <= kSettledMib) break;
    }
    worst = std::max(worst, took);
  }
  return worst;
}

class Tracking final : public Scenario {
 public:
  std::string name() const override { return "tracking"; }
  std::string summary() const override {
    return "a working set goes up and down a staircase: how closely the footprint follows";
  }
  std::vector<std::string> columns() const override {
    return {"mode",
            "slope",
            "r2",
            "mean_excess_mib",
            "gib_s",
            "settle_down_s",
            "completion_s",
            "completion_to_none",
            "disk_read_mib",
            "guest_cpu_s",
            "pattern_errors",
            "oom_kills",
            "idle_mib",
            "r2_all_samples"};
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
  void write_series(const Settings& settings, const std::string& mode,
                    const std::vector<Sample>& samples, double idle);
  std::unique_ptr<StaircaseDisk> disk_;
  std::vector<std::string> plotted_;
  std::string plot_;
};

Row Tracking::measure(const std::string& mode_name, const std::string& /*variant*/,
                      const Settings& settings) {
  if (!disk_) {
    Bytes once;
    for (const Step& step : kSteps) once += Bytes(step.passes * guest::kOncePerPass);
    disk_ = std::make_unique<StaircaseDisk>(Bytes::mib(kLargest / 2), once);
  }
  const Stage stage = boot_for(mode_name, settings, disk_->path());
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  vm.guest().shell("mkdir -p /mnt/disk && mount -t ext4 -o ro /dev/vda /mnt/disk");
  if (mode.takes_target()) {
    // An upper limit may be all there is; a balloon that does not yield must leave room.
    mode.request(mode.yields_by_reclaim() ? settings.memory : settings.memory - kFixedRoom);
  }

  Recorder recorder(vm, mode);
  recorder.record_for(0, kIdle);
  double idle = 0;
  int idle_samples = 0;
  for (const Sample& s : recorder.samples()) {
    if (s.in_step_s >= seconds(kIdle - kIdleMeasured)) {
      idle += s.footprint_mib;
      ++idle_samples;
    }
  }
  idle /= std::max(idle_samples, 1);

  vm.guest().call("staircase", {{"name", "work"},
                                {"hot", "/mnt/disk/hot"},
                                {"once", "/mnt/disk/once"},
                                {"largest", Bytes::mib(kLargest).count()}});
  const std::uint64_t read_before = vmstat_of(vm, "pgpgin");
  const std::uint64_t oom_before = vm.oom_kills();
  CpuMeter cpu(vm, mode);
  std::uint64_t errors = 0;
  double completion = 0;
  for (const Step& step : kSteps) {
    const auto ticket = vm.guest().start(
        "step",
        {{"name", "work"}, {"size", Bytes::mib(step.mib).count()}, {"passes", step.passes}});
    std::optional<vmkit::GuestClient::Object> answer;
    recorder.record(static_cast<double>(step.mib), [&] {
      if (!answer) answer = vm.guest().take(ticket);
      return !answer;
    });
    errors += answer->at("errors").to_number<std::uint64_t>();
    completion += answer->at("seconds").to_number<double>();
  }
  const CpuMeter::Reading used = cpu.read();
  const double read_mib =
      static_cast<double>(vmstat_of(vm, "pgpgin") - read_before) / 1024;  // counted in KiB
  vm.guest().drop("work");
  recorder.record_for(0, kAfter);

  double excess = 0;
  double area = 0;
  double count = 0;
  const std::vector<Sample>& samples = recorder.samples();
  for (std::size_t i = 1; i < samples.size(); ++i) {
    if (samples[i].step == 0) continue;  // before the workload
    excess += std::max(0.0, samples[i].footprint_mib - idle - samples[i].working_set_mib);
    area += samples[i].footprint_mib / 1024 * (samples[i].time_s - samples[i - 1].time_s);
    count += 1;
  }
  const Line settled = fit(samples, seconds(kSettle));
  const Line all = fit(samples, 0);
  write_series(settings, mode_name, samples, idle);

  Row row{{"mode", mode_name}};
  row["slope"] = settled.slope;
  row["r2"] = settled.r2;
  row["slope_all_samples"] = all.slope;
  row["r2_all_samples"] = all.r2;
  row["mean_excess_mib"] = excess / std::max(count, 1.0);
  row["gib_s"] = area;
  row["settle_down_s"] = settle_down(samples, idle);
  row["completion_s"] = completion;
  row["completion_to_none"] = nullptr;
  row["disk_read_mib"] = read_mib;
  row["guest_cpu_s"] = used.guest_s;
  row["agent_cpu_s"] = used.agent_s;
  row["pattern_errors"] = errors;
  row["oom_kills"] = vm.oom_kills() - oom_before;
  row["idle_mib"] = idle;
  row["yielded_pages"] = mode.yielded_pages();
  return row;
}

void Tracking::write_series(const Settings& settings, const std::string& mode,
                            const std::vector<Sample>& samples, double idle) {
  if (settings.plot.empty()) return;
  plot_ = settings.plot;
  std::ofstream out(plot_ + "-" + mode + ".dat");
  out << "# seconds footprint_mib working_set_mib_plus_idle\n";
  for (const Sample& s : samples) {
    out << s.time_s << ' ' << s.footprint_mib << ' ' << s.working_set_mib + idle << '\n';
  }
  if (!out) throw std::runtime_error("cannot write " + plot_ + "-" + mode + ".dat");
  if (std::find(plotted_.begin(), plotted_.end(), mode) == plotted_.end()) plotted_.push_back(mode);
}

/// One panel a mode: modes differ in completion time, so a shared time axis would not line up.
void draw(const std::string& plot, const std::vector<std::string>& modes) {
  const std::size_t columns = 3;
  const std::size_t rows = (modes.size() + columns - 1) / columns;
  for (const char* kind : {"svg", "png"}) {
    const std::string script = plot + ".gnuplot";
    std::ofstream out(script);
    out << "set terminal " << (kind == std::string("svg") ? "svg" : "pngcairo") << " size 1500,"
        << rows * 330 << "\nset output '" << plot << '.' << kind << "'\n"
        << "set multiplot layout " << rows << ',' << columns
        << " title 'Host memory behind a guest, and its working set'\n"
        << "set xlabel 'seconds'\nset ylabel 'MiB'\nset yrange [0:1100]\nset grid\n"
        << "set key top left\n";
    for (const std::string& mode : modes) {
      out << "set title '" << mode << "'\nplot '" << plot << '-' << mode
          << ".dat' using 1:3 with steps lw 2 lc rgb '#999999' title 'idle + working set', '' "
             "using "
             "1:2 with lines lw 2 lc rgb '#1f5fa8' title 'footprint'\n";
    }
    out << "unset multiplot\n";
    out.close();
    const auto done = vmkit::run_command({"gnuplot", script});
    if (done.status != 0) std::cerr << "gnuplot: " << done.err << '\n';
  }
}

void Tracking::relate(std::vector<Row>& rows) const {
  for (const Row& none : rows) {
    if (none.at("mode") != "none") continue;
    for (Row& row : rows) {
      row["completion_to_none"] =
          row.at("completion_s").as_double() / none.at("completion_s").as_double();
    }
  }
  if (!plot_.empty()) draw(plot_, plotted_);
}

}  // namespace

Scenario& tracking_scenario() {
  static Tracking scenario;
  return scenario;
}

}  // namespace fileballoon::bench
