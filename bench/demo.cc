// The demo: a stock guest in a stock QEMU uses memory and frees it, the balloon gives it to the
// host, a process in the guest then needs memory, the guest's own page reclaim takes it from the
// balloon, and every page of that process is verified. A live table shows it, a closing summary
// states what was measured. Fails when data was lost, a process was killed for want of memory, or
// the host's memory did not fall.

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <iostream>
#include <thread>

#include "bench/clock.h"
#include "bench/live_table.h"
#include "bench/report.h"
#include "tests/vm/kit/agent.h"
#include "tests/vm/kit/daemon.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::bench {
namespace {

constexpr const char* kName = "demo";
constexpr Bytes kBalloon = Bytes::mib(600);
constexpr Bytes kFill = Bytes::mib(500);
constexpr auto kPeriod = std::chrono::milliseconds(150);
constexpr auto kPhaseLimit = std::chrono::seconds(45);
// What must come back to the host of what the balloon took.
constexpr double kLeastFall = 0.9;
constexpr int kExitNoGuest = 77;  // as test drivers take it: skipped, not failed

struct Summary {
  double boot_s = 0;
  Bytes before;  // footprint after the guest has used and freed its memory
  Bytes after;   // with the balloon inflated
  Bytes peak;    // during inflation
  double inflate_s = 0;
  double fill_s = 0;
  std::uint64_t pattern_errors = 0;
  std::uint64_t oom_kills = 0;
  std::uint64_t from_balloon = 0;  // pages
  std::uint64_t from_elsewhere = 0;
  Bytes again;  // footprint at the end, balloon back
  [[nodiscard]] double fall() const { return (before - after).as_mib() / kBalloon.as_mib(); }
};

class Demo {
 public:
  Demo(std::ostream& out, bool redraw)
      : out_(out), start_(Clock::now()), table_(out, options_.memory, redraw) {}

  Summary run();
  [[nodiscard]] const std::vector<LiveSample>& samples() const { return samples_; }

 private:
  [[nodiscard]] LiveSample look(const std::string& phase);
  /// Samples until `done`; false where that takes too long.
  bool watch(const std::string& phase, const std::function<bool()>& done);
  [[nodiscard]] std::uint64_t stolen();
  void inflate(Summary& summary);
  void press(Summary& summary);

  std::ostream& out_;
  Clock::time_point start_;
  vmkit::VmOptions options_;
  LiveTable table_;
  std::vector<LiveSample> samples_;
  std::unique_ptr<vmkit::Vm> vm_;
  std::unique_ptr<vmkit::Daemon> daemon_;
  std::unique_ptr<vmkit::Agent> agent_;
};

LiveSample Demo::look(const std::string& phase) {
  const auto meminfo = vm_->guest().call("meminfo");
  const auto kib = [&](std::string_view key) {
    return Bytes(meminfo.at(key).to_number<std::uint64_t>() << 10);
  };
  LiveSample sample;
  sample.phase = phase;
  sample.guest_free = kib("MemFree");
  sample.guest_available = kib("MemAvailable");
  sample.guest_cache = kib("Cached");
  if (agent_) {
    const auto stats = agent_->stats();
    sample.balloon_target = Bytes(stats.at("target_bytes").to_number<std::uint64_t>());
    sample.balloon_resident = Bytes(stats.at("resident_bytes").to_number<std::uint64_t>());
  }
  sample.host_footprint = vm_->footprint().now();
  sample.time_s = seconds_since(start_);
  return sample;
}

bool Demo::watch(const std::string& phase, const std::function<bool()>& done) {
  const auto deadline = Clock::now() + kPhaseLimit;
  bool finished = done();
  while (!finished && Clock::now() < deadline) {
    samples_.push_back(look(phase));
    table_.update(samples_.back());
    std::this_thread::sleep_for(kPeriod);
    finished = done();
  }
  samples_.push_back(look(phase));
  table_.commit(samples_.back());
  return finished;
}

// Pages that the guest's reclaim has taken since its boot, balloon pages included.
std::uint64_t Demo::stolen() {
  const auto vmstat = vm_->guest().call("numbers").at("vmstat").as_object();
  std::uint64_t sum = 0;
  for (const char* key : {"pgsteal_kswapd", "pgsteal_direct", "pgsteal_khugepaged"}) {
    if (const auto* value = vmstat.if_contains(key)) sum += value->to_number<std::uint64_t>();
  }
  return sum;
}

void Demo::inflate(Summary& summary) {
  summary.before = vm_->footprint().now();
  vmkit::FootprintSampler sampler(vm_->footprint());
  const auto start = Clock::now();
  daemon_->set_target(kName, kBalloon);
  const auto done = [&] {
    return Bytes::pages(daemon_->counter(kName, "frames_discarded")) >= kBalloon;
  };
  // The end is looked for more often than the table is drawn.
  std::optional<double> inflate_s;
  if (!watch("balloon inflates", [&] {
        for (int i = 0; i < 10 && !inflate_s; ++i) {
          if (done()) inflate_s = seconds_since(start);
          if (!inflate_s) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        return inflate_s.has_value();
      })) {
    throw std::runtime_error("the balloon did not reach " + to_string(kBalloon) + "\n" +
                             daemon_->log_tail());
  }
  summary.inflate_s = *inflate_s;
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  sampler.stop();
  summary.peak = sampler.peak();
  summary.after = vm_->footprint().now();
  (void)watch("host has its memory back", [] { return true; });
}

void Demo::press(Summary& summary) {
  const std::uint64_t evicted = agent_->number("evicted_pages");
  const std::uint64_t yielded = agent_->number("yielded_pages");
  const std::uint64_t stolen_before = stolen();
  const auto fill =
      vm_->guest().start("fill", {{"name", "process"}, {"size", kFill.count()}, {"seed", 7}});
  std::optional<vmkit::GuestClient::Object> filled;
  if (!watch("a process fills 500 MiB", [&] {
        filled = vm_->guest().take(fill);
        return filled.has_value();
      })) {
    throw std::runtime_error("the process in the guest did not get its memory");
  }
  summary.fill_s = filled->at("fill_s").to_number<double>();
  // What the balloon gave up by itself has not passed through reclaim. It counts as evicted, too,
  // and is read within the time in which those are counted, so that it is never more.
  const std::uint64_t yielded_since = agent_->number("yielded_pages") - yielded;
  summary.from_balloon = agent_->number("evicted_pages") - evicted;
  const std::uint64_t reclaimed = summary.from_balloon - yielded_since;
  const std::uint64_t stolen_now = stolen() - stolen_before;
  summary.from_elsewhere = stolen_now > reclaimed ? stolen_now - reclaimed : 0;

  const auto check = vm_->guest().start("check", {{"name", "process"}});
  std::optional<vmkit::GuestClient::Object> checked;
  if (!watch("every page is verified", [&] {
        checked = vm_->guest().take(check);
        return checked.has_value();
      })) {
    throw std::runtime_error("the process in the guest does not answer");
  }
  summary.pattern_errors = checked->at("errors").to_number<std::uint64_t>();
}

Summary Demo::run() {
  Summary summary;
  const auto& accelerator = vmkit::accelerator();
  out_ << "A " << to_string(options_.memory) << " guest: stock Linux "
       << vmkit::find_guest_kernel().release << " in stock QEMU " << vmkit::qemu_version()
       << ", accelerator " << accelerator.name << " (" << accelerator.reason << ")\n\n";
  vm_ = std::make_unique<vmkit::Vm>(options_);
  summary.boot_s = seconds_since(start_);
  table_.print_header();
  (void)watch("guest has booted", [] { return true; });

  daemon_ = std::make_unique<vmkit::Daemon>();
  daemon_->attach(kName, *vm_);
  agent_ = std::make_unique<vmkit::Agent>(*vm_);
  agent_->mount();
  if (!watch("balloonfs is mounted", [&] { return daemon_->connected(kName); })) {
    throw std::runtime_error("balloonfs and fileballoond do not find each other\n" +
                             daemon_->log_tail());
  }

  const Bytes touched = (vm_->guest().meminfo("MemFree") - Bytes::mib(64)).page_floor();
  const auto touch = vm_->guest().start("touch", {{"size", touched.count()}});
  if (!watch("guest uses and frees memory", [&] { return vm_->guest().take(touch).has_value(); })) {
    throw std::runtime_error("the guest did not get through its memory");
  }

  inflate(summary);
  press(summary);
  vm_->guest().drop("process");
  (void)watch("it ends, the balloon returns", [&] { return agent_->resident() >= kBalloon; });
  summary.again = vm_->footprint().now();
  summary.oom_kills = vm_->oom_kills();
  return summary;
}

// What was measured, in sentences; returns whether the story came true.
bool print_summary(const Summary& summary, double total_s) {
  const auto print = [](const std::string& text) { std::cout << "  " << text << '\n'; };
  std::cout << "\nMeasured\n";
  print(fmt::format(
      "The guest had used and freed its memory: {:.0f} MiB of the host's stayed behind it.",
      summary.before.as_mib()));
  print(fmt::format(
      "A balloon of {:.0f} MiB brought that down to {:.0f} MiB in {:.2f} s ({:.0f} MiB/s);",
      kBalloon.as_mib(), summary.after.as_mib(), summary.inflate_s,
      kBalloon.as_mib() / summary.inflate_s));
  print(fmt::format(
      "{:.1f} % of what was inflated came back, never more than {:.1f} MiB above the start.",
      summary.fall() * 100, (summary.peak - summary.before).as_mib()));
  print(fmt::format(
      "A process then filled {:.0f} MiB in {:.2f} s. The guest took {:.0f} MiB back from the",
      kFill.as_mib(), summary.fill_s, Bytes::pages(summary.from_balloon).as_mib()));
  print(fmt::format(
      "balloon, its reclaim {:.0f} MiB from anything else. OOM kills: {}. Wrong pages: {} of {}.",
      Bytes::pages(summary.from_elsewhere).as_mib(), summary.oom_kills, summary.pattern_errors,
      kFill.whole_pages()));
  print(fmt::format("Afterwards the balloon returned, and the footprint is {:.0f} MiB.",
                    summary.again.as_mib()));
  std::vector<std::string> failures;
  if (summary.pattern_errors > 0) failures.emplace_back("the guest lost data");
  if (summary.oom_kills > 0) failures.emplace_back("the guest killed a process for want of memory");
  if (summary.fall() < kLeastFall) failures.emplace_back("the host's footprint did not fall");
  std::cout << fmt::format("{} in {:.0f} s\n", failures.empty() ? "Success" : "FAILED", total_s);
  for (const std::string& failure : failures) print(failure);
  return failures.empty();
}

void write_json(const std::string& path, const Demo& demo, const Summary& summary, bool success) {
  Report report("demo");
  report.machine().accel = vmkit::accelerator().name;
  report.machine().guest_kernel = vmkit::find_guest_kernel().release;
  report.machine().qemu = vmkit::qemu_version();
  report.set("success", success);
  report.set("summary", boost::json::object{{"balloon_mib", kBalloon.as_mib()},
                                            {"footprint_before_mib", summary.before.as_mib()},
                                            {"footprint_peak_mib", summary.peak.as_mib()},
                                            {"footprint_after_mib", summary.after.as_mib()},
                                            {"inflate_s", summary.inflate_s},
                                            {"fill_mib", kFill.as_mib()},
                                            {"fill_s", summary.fill_s},
                                            {"pattern_errors", summary.pattern_errors},
                                            {"oom_kills", summary.oom_kills},
                                            {"reclaimed_balloon_pages", summary.from_balloon},
                                            {"reclaimed_other_pages", summary.from_elsewhere},
                                            {"footprint_end_mib", summary.again.as_mib()}});
  for (const LiveSample& sample : demo.samples()) {
    report.add({{"time_s", sample.time_s},
                {"phase", sample.phase},
                {"guest_free_mib", sample.guest_free.as_mib()},
                {"guest_available_mib", sample.guest_available.as_mib()},
                {"guest_cache_mib", sample.guest_cache.as_mib()},
                {"balloon_target_mib", sample.balloon_target.as_mib()},
                {"balloon_resident_mib", sample.balloon_resident.as_mib()},
                {"host_footprint_mib", sample.host_footprint.as_mib()}});
  }
  report.write_json(path);
}

int run(int argc, char** argv) {
  CLI::App app(
      "Shows a balloon in a real guest: memory goes to the host, and comes back when needed.");
  std::string json;
  bool plain = false;
  app.add_option("--json", json, "write samples and summary as one JSON object to this file");
  app.add_flag("--plain", plain, "never redraw lines, also on a terminal");
  CLI11_PARSE(app, argc, argv);
  vmkit::exit_cleanly_on_signals();
  if (const auto reason = vmkit::why_no_guest()) {
    std::cerr << "demo: no guest can be booted here: " << *reason << '\n';
    return kExitNoGuest;
  }

  const auto start = Clock::now();
  Demo demo(std::cout, !plain && isatty(STDOUT_FILENO) == 1);
  const Summary summary = demo.run();
  const bool success = print_summary(summary, seconds_since(start));
  if (!json.empty()) write_json(json, demo, summary, success);
  return success ? 0 : 1;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  try {
    return fileballoon::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "\ndemo: " << error.what() << '\n';
    return 1;
  }
}
