// arbiter_sim: the daemon's arbiter over thousands of synthetic guests for a simulated day, without
// any VM. Reports how long a tick takes, how long guests wait for memory, how often targets swing
// for nothing, how much of the time each band had what it needed, and whether a rule was broken.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <iostream>
#include <string>
#include <vector>

#include "bench/arbiter_sim_guests.h"
#include "bench/report.h"
#include "fileballoon/arbiter_invariants.h"

namespace fileballoon::bench {
namespace {

struct Options {
  std::size_t vms = 10000;
  double hours = 24;
  std::uint64_t seed = 1;
  double tick_s = 2;
  double overcommit = 1.6;
  double idle_tax = 0.75;
  std::string json;
  bool explain = false;
};

/// CPU time of this thread so far, milliseconds.
double thread_cpu_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

/// The q-quantile of `values`, which it reorders; 0 where there are none.
double quantile(std::vector<float>& values, double q) {
  if (values.empty()) {
    return 0;
  }
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

/// Targets that swing: down and up again (or up and down) within five minutes by 5 % of RAM, while
/// the guest's own use moved by less than half of that. A swing that follows the guest is none.
class SwingCounter {
 public:
  explicit SwingCounter(std::size_t vms) : turn_(vms), direction_(vms, 0) {}

  void see(std::size_t i, double now_s, double target, double active, double ram) {
    Point& turn = turn_[i];
    const double step = target - turn.target;
    const int direction = direction_[i];
    if (direction == 0 || (step > 0) == (direction > 0)) {
      if (std::abs(step) >= 0.05 * ram || direction == 0) {
        direction_[i] = step > 0 ? 1 : -1;
        turn = {now_s, target, active};  // goes on the same way: the extreme moves along
      } else if (step != 0) {
        turn.target = target;
      }
      return;
    }
    if (std::abs(step) < 0.05 * ram) {
      return;
    }
    if (now_s - turn.time_s < 300 && std::abs(active - turn.active) < std::abs(step) / 2) {
      ++swings_;
    }
    direction_[i] = -direction;
    turn = {now_s, target, active};
  }
  [[nodiscard]] std::uint64_t swings() const { return swings_; }

 private:
  struct Point {
    double time_s = 0;
    double target = 0;
    double active = 0;
  };
  std::vector<Point> turn_;
  std::vector<int> direction_;
  std::uint64_t swings_ = 0;
};

/// What happens on the host beside VMs: a slow wave, and three times a day a job that takes a tenth
/// of the memory for half an hour.
double other_use(double memory, double now_s) {
  const double wave = 0.02 + 0.01 * std::sin(now_s / 1800);
  const double in_period = std::fmod(now_s, 8 * 3600);
  const bool job = in_period >= 4 * 3600 && in_period < 4.5 * 3600;
  return memory * (wave + (job ? 0.10 : 0.0));
}

class Simulation {
 public:
  explicit Simulation(const Options& options)
      : options_(options),
        random_(options.seed),
        fleet_(make_fleet(options.vms, random_)),
        arbiter_(make_arbiter_config({.idle_tax = options.idle_tax}).value()),
        swings_(options.vms),
        short_since_(options.vms, -1) {
    for (const VmSettings& s : fleet_.settings) {
      fleet_.id.push_back(arbiter_.add(s));
      memory_ += static_cast<double>(s.ram.count()) / options.overcommit;
      checked_.push_back({fleet_.id.back(), s, Bytes(0)});
    }
  }

  void run() {
    const auto ticks = static_cast<std::uint64_t>(options_.hours * 3600 / options_.tick_s);
    tick_ms_.reserve(ticks);
    tick_wall_ms_.reserve(ticks);
    for (std::uint64_t n = 0; n < ticks; ++n) {
      const double now_s = static_cast<double>(n) * options_.tick_s;
      move_working_sets(fleet_, now_s, options_.tick_s, random_);
      live(fleet_, arbiter_, options_.tick_s);
      tick(now_s);
      if (n * options_.tick_s >= 600) {  // the first minutes are the fleet starting up
        observe(now_s);
      }
    }
  }

  [[nodiscard]] Row row();
  [[nodiscard]] std::string words() const { return arbiter_.explain_host(); }
  [[nodiscard]] std::uint64_t violations() const { return violations_; }

 private:
  void tick(double now_s) {
    double footprints = 0;
    for (std::size_t i = 0; i < fleet_.size(); ++i) {
      const double ram = static_cast<double>(fleet_.settings[i].ram.count());
      VmReport report;
      report.footprint = Bytes(static_cast<std::uint64_t>(fleet_.footprint[i])).page_floor();
      report.guest_known = true;
      report.available = Bytes(static_cast<std::uint64_t>(std::max(0.0, ram - fleet_.active[i])));
      report.deflated = Bytes(static_cast<std::uint64_t>(fleet_.deflated[i]));
      report.paged = Bytes(static_cast<std::uint64_t>(fleet_.paged[i]));
      report.asked_back = Bytes(static_cast<std::uint64_t>(fleet_.asked[i]));
      arbiter_.report(fleet_.id[i], report);
      fleet_.deflated[i] = fleet_.asked[i] = 0;
      checked_[i].footprint = report.footprint;
      footprints += fleet_.footprint[i];
    }
    const double free = memory_ - other_use(memory_, now_s) - footprints;
    over_s_ += free < 0 ? options_.tick_s : 0;
    HostReport host;
    host.available = Bytes(static_cast<std::uint64_t>(std::max(0.0, free)));
    host.psi_some = free < memory_ * 0.005 ? 30 : 0;  // reclaim works hard when nothing is left
    host.psi_full = free < 0 ? 10 : 0;
    const auto now = Arbiter::Clock::time_point(
        std::chrono::nanoseconds(static_cast<std::int64_t>((now_s + 1) * 1e9)));
    const double cpu_before = thread_cpu_ms();
    const auto start = std::chrono::steady_clock::now();
    const TickSummary& summary = arbiter_.tick(host, now);
    const auto stop = std::chrono::steady_clock::now();
    tick_ms_.push_back(static_cast<float>(thread_cpu_ms() - cpu_before));
    tick_wall_ms_.push_back(
        static_cast<float>(std::chrono::duration<double, std::milli>(stop - start).count()));
    orders_ += summary.changed;
    found_.clear();
    check_invariants(arbiter_, checked_, found_);
    violations_ += found_.size();
    if (!found_.empty() && violations_ == found_.size()) {
      std::cerr << "at " << now_s << " s: " << found_.front() << '\n';
    }
    watch_pressure(summary, now_s);
  }

  /// How long the host takes to be out of pressure once it has come into it.
  void watch_pressure(const TickSummary& summary, double now_s) {
    const bool pressed = summary.footprints > summary.budget + Bytes(summary.capacity.count() / 50);
    if (pressed && pressed_since_ < 0) {
      pressed_since_ = now_s;
    } else if (!pressed && pressed_since_ >= 0) {
      relief_s_.push_back(static_cast<float>(now_s - pressed_since_));
      pressed_since_ = -1;
    }
  }

  void observe(double now_s) {
    for (std::size_t i = 0; i < fleet_.size(); ++i) {
      const VmDecision d = arbiter_.decision(fleet_.id[i]);
      const VmSettings& s = fleet_.settings[i];
      const double target = static_cast<double>(d.target.count());
      const unsigned band = s.band;
      const double touched = fleet_.touched(i) * 0.99;
      const bool has = fleet_.footprint[i] >= touched && target >= touched;
      band_time_[band] += 1;
      band_had_[band] += has ? 1 : 0;
      swings_.see(i, now_s, target, fleet_.active[i], static_cast<double>(s.ram.count()));
      float& since = short_since_[i];
      if (!has && since < 0) {
        since = static_cast<float>(now_s);
      } else if (has && since >= 0) {
        wait_s_[band].push_back(static_cast<float>(now_s) - since);
        since = -1;
      }
    }
    observed_s_ += options_.tick_s;
  }

  Options options_;
  std::mt19937_64 random_;
  GuestFleet fleet_;
  Arbiter arbiter_;
  double memory_ = 0;
  std::vector<ArbitratedVm> checked_;
  std::vector<std::string> found_;
  std::vector<float> tick_ms_;  // of CPU: a busy machine must not look like a slow arbiter
  std::vector<float> tick_wall_ms_;
  SwingCounter swings_;
  std::vector<float> short_since_;
  std::array<std::vector<float>, kBands> wait_s_;
  std::array<double, kBands> band_time_{};
  std::array<double, kBands> band_had_{};
  std::vector<float> relief_s_;
  double pressed_since_ = -1;
  double over_s_ = 0;
  double observed_s_ = 0;
  std::uint64_t orders_ = 0;
  std::uint64_t violations_ = 0;
};

Row Simulation::row() {
  const double vm_hours = std::max(1e-9, observed_s_ / 3600 * static_cast<double>(fleet_.size()));
  Row row;
  row["vms"] = fleet_.size();
  row["hours"] = options_.hours;
  row["seed"] = options_.seed;
  row["tick_interval_s"] = options_.tick_s;
  row["overcommit"] = options_.overcommit;
  row["idle_tax"] = options_.idle_tax;
  row["tick_p50_ms"] = quantile(tick_ms_, 0.50);
  row["tick_p99_ms"] = quantile(tick_ms_, 0.99);
  row["tick_max_ms"] = quantile(tick_ms_, 1.0);
  row["tick_wall_p50_ms"] = quantile(tick_wall_ms_, 0.50);
  row["tick_wall_p99_ms"] = quantile(tick_wall_ms_, 0.99);
  row["invariant_violations"] = violations_;
  row["oscillations_per_vm_hour"] = static_cast<double>(swings_.swings()) / vm_hours;
  row["orders_per_vm_hour"] = static_cast<double>(orders_) / vm_hours;
  row["convergence_p50_s"] = quantile(relief_s_, 0.5);
  row["convergence_p99_s"] = quantile(relief_s_, 0.99);
  row["host_over_s"] = over_s_;
  for (unsigned b = 0; b < kBands; ++b) {
    if (band_time_[b] > 0) {
      const std::string band = "band" + std::to_string(b);
      row[band + "_had_need"] = band_had_[b] / band_time_[b];
      row[band + "_wait_p50_s"] = quantile(wait_s_[b], 0.5);
      row[band + "_wait_p99_s"] = quantile(wait_s_[b], 0.99);
    }
  }
  return row;
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app{"The arbiter over synthetic guests: time of a tick, swings, waits, broken rules"};
  app.add_option("--vms", options.vms, "Number of VMs")->check(CLI::Range(0, 1'000'000));
  app.add_option("--hours", options.hours, "Simulated hours")->check(CLI::Range(0.0, 8760.0));
  app.add_option("--seed", options.seed, "The same seed gives the same day");
  app.add_option("--tick-seconds", options.tick_s, "Simulated time between two ticks")
      ->check(CLI::Range(0.1, 60.0));
  app.add_option("--overcommit", options.overcommit, "RAM of all VMs to memory of the host")
      ->check(CLI::Range(0.1, 20.0));
  app.add_option("--idle-tax", options.idle_tax, "0 (isolation) to 1 (nothing stays idle)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--json", options.json, "Write the result to this file");
  app.add_flag("--explain", options.explain, "Print the host's last state in words");
  CLI11_PARSE(app, argc, argv);

  Simulation simulation(options);
  simulation.run();
  Report report("arbiter_sim");
  report.add(simulation.row());
  report.print_table(std::cout,
                     {"vms", "hours", "tick_p50_ms", "tick_p99_ms", "invariant_violations",
                      "oscillations_per_vm_hour", "orders_per_vm_hour", "convergence_p99_s"});
  report.print_table(std::cout,
                     {"band0_had_need", "band1_had_need", "band2_had_need", "band3_had_need",
                      "band0_wait_p99_s", "band3_wait_p99_s", "host_over_s"});
  if (options.explain) {
    std::cout << simulation.words() << '\n';
  }
  if (!options.json.empty()) {
    report.write_json(options.json);
  }
  if (simulation.violations() > 0) {
    std::cerr << "arbiter_sim: " << simulation.violations() << " broken rules\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  try {
    return fileballoon::bench::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "arbiter_sim: " << e.what() << '\n';
    return 1;
  }
}
