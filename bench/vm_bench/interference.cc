// Scenario "interference": what a moving balloon costs a workload that does not need its memory. A
// loop over memory or over a cached file runs in short slices; in every other slice the balloon
// goes up and down without a pause, at the pace the mechanism has by default. Each disturbed slice
// is compared with its two undisturbed neighbours in the same guest, and the median of these ratios
// is the result: the machine's own ups and downs are slower than a slice and fall on both.
//
// "steady" asks something else: a full balloon beside both kinds of loop, nothing told to move.
// What it loses then, it would have to take again: the balloon eating itself.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/median.h"
#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/mover.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Disturbed slices; there is one undisturbed slice more.
constexpr int kDisturbed = 6;
constexpr double kSliceSeconds = 4;
/// Before an undisturbed slice: what the host and the guest still have to do after a movement must
/// not count as undisturbed. The loop runs, so that its slice does not begin with cold caches.
constexpr double kCalmSeconds = 3;
/// The balloon goes up by this and down again: some times in a slice.
constexpr Bytes kRise = Bytes::mib(48);
constexpr Bytes kLoopSize = Bytes::mib(100);
constexpr auto kPoll = std::chrono::milliseconds(50);
/// Steady state: time to get there, and time watched.
constexpr auto kFillTime = std::chrono::seconds(15);
constexpr double kWatchSeconds = 20;

struct Slice {
  double rate = 0;
  double p99_us = 0;
  double guest_wait = 0;   ///< share of the time in which the loop waited for a CPU of the guest
  double host_wait = 0;    ///< how many threads of QEMU waited for a CPU of the host, on average
  double tlb_flushes = 0;  ///< by the emulator, a second
};

using Slices = std::vector<Slice>;

/// What each slice had of it.
std::vector<double> each(const Slices& slices, double Slice::*what) {
  std::vector<double> values;
  for (const Slice& slice : slices) values.push_back(slice.*what);
  return values;
}

/// Makes each CPU of the guest leave its address space and come back, a hundred times a second.
///
/// Under TCG a loop alone on its CPU is no fair base to compare with: emulation sizes the TLB that
/// it keeps in software when the guest flushes it (tlb_mmu_resize_locked() in QEMU's
/// accel/tcg/cputlb.c), and a loop that nobody interrupts never does. Its TLB stays as it was when
/// it began, mostly too small, and each of its accesses walks page tables. Whatever else runs on
/// that CPU, a balloon for one, makes it flush, and the loop several times as fast. So something
/// else runs all the time; the variant "switches" shows what that alone does.
class Switchers {
 public:
  explicit Switchers(vmkit::Vm& vm) : vm_(vm) {}
  void start() {
    for (unsigned cpu = 0; cpu < vm_.options().cpus; ++cpu) {
      vm_.guest().call("switch", {{"name", name(cpu)}, {"cpu", cpu}, {"every_us", kEveryUs}});
    }
  }
  void stop() {
    for (unsigned cpu = 0; cpu < vm_.options().cpus; ++cpu) {
      vm_.guest().call("drop", {{"name", name(cpu)}});
    }
  }

 private:
  static constexpr int kEveryUs = 10000;
  static std::string name(unsigned cpu) { return "switch-" + std::to_string(cpu); }
  vmkit::Vm& vm_;
};

class Interference final : public Scenario {
 public:
  std::string name() const override { return "interference"; }
  std::string summary() const override {
    return "a loop over memory or a cached file, while the balloon moves and while not";
  }
  std::vector<std::string> columns() const override {
    return {"mode",
            "memory",
            "throughput_ratio",
            "lowest_ratio",
            "p99_ratio",
            "quiet_ops_per_s",
            "moving_ops_per_s",
            "quiet_p99_us",
            "moving_p99_us",
            "moving_guest_wait",
            "moving_host_wait",
            "rises",
            "moved_mib_per_s",
            "evicted_per_inflated",
            "oom_kills"};
  }
  std::vector<std::string> modes() const override {
    return {"none", "fileballoon", "fileballoon-uffd", "virtio-balloon"};
  }
  std::vector<std::string> variants(const std::string& mode) const override {
    if (mode == "none") return {"anonymous", "stream", "file", "switches"};
    if (mode.starts_with("fileballoon")) return {"anonymous", "stream", "file", "steady"};
    return {"anonymous", "stream", "file"};
  }
  Row measure(const std::string& mode, const std::string& variant,
              const Settings& settings) override;

 private:
  Row moving(const Stage& stage, const std::string& variant, const Settings& settings);
  Row steady(const Stage& stage, const Settings& settings);
  std::unique_ptr<StaircaseDisk> disk_;
};

void start_loop(vmkit::Vm& vm, const std::string& name, const std::string& variant) {
  const std::string over = variant == "file"     ? "/mnt/disk/hot"
                           : variant == "stream" ? "stream"
                                                 : "random pages";
  vm.guest().call("loop", {{"name", name}, {"over", over}, {"size", kLoopSize.count()}});
}

Slice run_slice(vmkit::Vm& vm, Mode& mode, Mover* mover, double length = kSliceSeconds) {
  const double waited_before = waited_for_cpu_seconds(vm.pid());
  const std::uint64_t flushes_before = emulator_tlb_flushes(vm);
  const auto begin = Clock::now();
  const auto ticket = vm.guest().start("loop-for", {{"name", "work"}, {"seconds", length}});
  std::optional<vmkit::GuestClient::Object> answer;
  while (!(answer = vm.guest().take(ticket))) {
    // The mechanism is asked in both kinds of slice, so that asking is no difference.
    if (mover != nullptr) {
      mover->move();
    } else {
      (void)mode.inflated();
    }
    std::this_thread::sleep_for(kPoll);
  }
  const double passed = std::chrono::duration<double>(Clock::now() - begin).count();
  const double seconds = answer->at("seconds").to_number<double>();
  return {answer->at("operations").to_number<double>() / seconds,
          answer->at("p99_us").to_number<double>(),
          answer->at("waited_s").to_number<double>() / seconds,
          (waited_for_cpu_seconds(vm.pid()) - waited_before) / passed,
          static_cast<double>(emulator_tlb_flushes(vm) - flushes_before) / passed};
}

Row Interference::moving(const Stage& stage, const std::string& variant, const Settings& settings) {
  vmkit::Vm& vm = *stage.vm;
  const bool only_switches = variant == "switches";
  start_loop(vm, "work", variant);
  Switchers switchers(vm);
  if (!only_switches) switchers.start();
  Mover mover(*stage.mode, std::min(settings.balloon, kRise));
  Slices quiet;
  Slices moved;
  (void)run_slice(vm, *stage.mode, nullptr, kCalmSeconds);
  quiet.push_back(run_slice(vm, *stage.mode, nullptr));
  double moving_s = 0;
  for (int i = 0; i < kDisturbed; ++i) {
    const auto begin = Clock::now();
    if (only_switches) switchers.start();
    mover.begin();
    moved.push_back(run_slice(vm, *stage.mode, &mover));
    moving_s += std::chrono::duration<double>(Clock::now() - begin).count();
    mover.end();
    if (only_switches) switchers.stop();
    (void)run_slice(vm, *stage.mode, nullptr, kCalmSeconds);
    quiet.push_back(run_slice(vm, *stage.mode, nullptr));
  }
  const auto ratios = [&](double Slice::*what) {
    std::vector<double> all;
    for (std::size_t i = 0; i < moved.size(); ++i) {
      all.push_back(moved[i].*what / ((quiet[i].*what + quiet[i + 1].*what) / 2));
    }
    return all;
  };
  const std::vector<double> rates = ratios(&Slice::rate);
  const std::vector<double> quiet_rates = each(quiet, &Slice::rate);
  Row row;
  row["throughput_ratio"] = median(rates);
  row["lowest_ratio"] = *std::min_element(rates.begin(), rates.end());
  row["p99_ratio"] = median(ratios(&Slice::p99_us));
  row["quiet_least_ops_per_s"] = *std::min_element(quiet_rates.begin(), quiet_rates.end());
  row["quiet_most_ops_per_s"] = *std::max_element(quiet_rates.begin(), quiet_rates.end());
  const std::pair<const char*, double Slice::*> medians[] = {
      {"ops_per_s", &Slice::rate},
      {"p99_us", &Slice::p99_us},
      {"guest_wait", &Slice::guest_wait},
      {"host_wait", &Slice::host_wait},
      {"tlb_flushes_per_s", &Slice::tlb_flushes}};
  for (const auto& [name, what] : medians) {
    row[std::string("quiet_") + name] = median(each(quiet, what));
    row[std::string("moving_") + name] = median(each(moved, what));
  }
  row["rises"] = mover.rises();
  row["moved_mib_per_s"] = mover.moved().as_mib() / moving_s;
  row["evicted_per_inflated"] = nullptr;
  return row;
}

Row Interference::steady(const Stage& stage, const Settings& settings) {
  vmkit::Vm& vm = *stage.vm;
  Mode& mode = *stage.mode;
  start_loop(vm, "work", "anonymous");
  start_loop(vm, "files", "file");
  // The loops run all the time: files that nobody reads while the balloon fills are cold cache, and
  // reading them again is no steady state.
  const double whole = std::chrono::duration<double>(kFillTime).count() + kWatchSeconds;
  const auto memory = vm.guest().start("loop-for", {{"name", "work"}, {"seconds", whole}});
  const auto file = vm.guest().start("loop-for", {{"name", "files"}, {"seconds", whole}});
  mode.request(settings.memory);
  std::this_thread::sleep_for(kFillTime);
  const std::uint64_t inflated = mode.inflated().whole_pages();
  const std::uint64_t evicted = mode.yielded_pages();
  (void)vm.guest().wait(memory);
  (void)vm.guest().wait(file);
  const std::uint64_t taken = mode.inflated().whole_pages() - inflated;
  const std::uint64_t lost = mode.yielded_pages() - evicted;
  Row row;
  row["inflated_pages"] = inflated;
  row["inflated_in_steady_state"] = taken;
  row["evicted_in_steady_state"] = lost;
  // Of all that was ever inflated: in steady state little is, and 0 of 0 says nothing.
  row["evicted_per_inflated"] =
      static_cast<double>(lost) / static_cast<double>(std::max<std::uint64_t>(inflated + taken, 1));
  return row;
}

Row Interference::measure(const std::string& mode_name, const std::string& variant,
                          const Settings& settings) {
  if (!disk_) disk_ = std::make_unique<StaircaseDisk>(kLoopSize, Bytes::mib(1));
  const Stage stage = boot_for(mode_name, settings, disk_->path());
  vmkit::Vm& vm = *stage.vm;
  vm.guest().shell("mkdir -p /mnt/disk && mount -t ext4 -o ro /dev/vda /mnt/disk");
  touch_free_memory(vm);
  const std::uint64_t oom_before = vm.oom_kills();
  Row row{{"mode", mode_name}, {"memory", variant}};
  const Row measured =
      variant == "steady" ? steady(stage, settings) : moving(stage, variant, settings);
  for (const auto& field : measured) row[field.key()] = field.value();
  row["yielded_pages"] = stage.mode->yielded_pages();
  row["oom_kills"] = vm.oom_kills() - oom_before;
  return row;
}

}  // namespace

Scenario& interference_scenario() {
  static Interference scenario;
  return scenario;
}

}  // namespace fileballoon::bench
