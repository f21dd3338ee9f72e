// Scenario "interference": what a moving balloon costs a workload that does not need its memory. A
// loop over memory or over a cached file runs in spans of some seconds; in every other span the
// balloon goes up and down at full speed. Both kinds of span alternate in one guest, so that a busy
// minute of the machine falls on both.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include "bench/vm_bench/disk_image.h"
#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 3;
constexpr double kSpanSeconds = 5;
constexpr Bytes kLoopSize = Bytes::mib(100);
constexpr auto kPoll = std::chrono::milliseconds(50);
/// A balloon that cannot reach its size in the time turns round all the same.
constexpr auto kRiseLimit = std::chrono::seconds(20);

/// Moves a balloon up and down: towards `size` until it is there, then to nothing, and again.
class Mover {
 public:
  Mover(Mode& mode, Bytes size) : mode_(mode), size_(size) {}

  void begin() { up(); }
  void move() {
    if (!mode_.takes_target()) return;
    if (rising_ && (mode_.inflated() >= goal_ || Clock::now() > turn_at_)) {
      mode_.request(Bytes(0));
      rising_ = false;
      turn_at_ = Clock::now() + std::chrono::seconds(1);
    } else if (!rising_ && Clock::now() > turn_at_) {
      ++cycles_;
      up();
    }
  }
  void end() {
    if (mode_.takes_target()) mode_.request(Bytes(0));
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  [[nodiscard]] int cycles() const { return cycles_; }

 private:
  void up() {
    if (!mode_.takes_target()) return;
    // inflated() of this project counts all that was ever discarded; of virtio-balloon, what is in.
    goal_ = (mode_.yields_by_reclaim() ? mode_.inflated() : Bytes(0)) + size_;
    mode_.request(size_);
    rising_ = true;
    turn_at_ = Clock::now() + kRiseLimit;
  }

  Mode& mode_;
  Bytes size_;
  Bytes goal_;
  bool rising_ = false;
  int cycles_ = 0;
  Clock::time_point turn_at_{};
};

struct Sum {
  double operations = 0;
  double seconds = 0;
  double p50_us = 0;
  double p99_us = 0;  // the worst of the spans

  void add(const vmkit::GuestClient::Object& span) {
    operations += span.at("operations").to_number<double>();
    seconds += span.at("seconds").to_number<double>();
    p50_us = std::max(p50_us, span.at("p50_us").to_number<double>());
    p99_us = std::max(p99_us, span.at("p99_us").to_number<double>());
  }
  [[nodiscard]] double rate() const { return seconds > 0 ? operations / seconds : 0; }
};

class Interference final : public Scenario {
 public:
  std::string name() const override { return "interference"; }
  std::string summary() const override {
    return "a loop over memory or a cached file, while the balloon moves at full speed and while "
           "not";
  }
  std::vector<std::string> columns() const override {
    return {
        "mode",         "memory",        "throughput_ratio", "quiet_ops_per_s", "moving_ops_per_s",
        "quiet_p99_us", "moving_p99_us", "cycles",           "oom_kills"};
  }
  std::vector<std::string> modes() const override {
    return {"none", "fileballoon", "virtio-balloon"};
  }
  std::vector<std::string> variants(const std::string& /*mode*/) const override {
    return {"anonymous", "file"};
  }
  Row measure(const std::string& mode, const std::string& variant,
              const Settings& settings) override;

 private:
  std::unique_ptr<StaircaseDisk> disk_;
};

Row Interference::measure(const std::string& mode_name, const std::string& variant,
                          const Settings& settings) {
  if (!disk_) disk_ = std::make_unique<StaircaseDisk>(kLoopSize, Bytes::mib(1));
  const Stage stage = boot_for(mode_name, settings, disk_->path());
  vmkit::Vm& vm = *stage.vm;
  vm.guest().shell("mkdir -p /mnt/disk && mount -t ext4 -o ro /dev/vda /mnt/disk");
  touch_free_memory(vm);
  vm.guest().call("loop", {{"name", "work"},
                           {"path", variant == "file" ? "/mnt/disk/hot" : ""},
                           {"size", kLoopSize.count()}});
  const std::uint64_t oom_before = vm.oom_kills();
  Mover mover(*stage.mode, settings.balloon);
  Sum quiet;
  Sum moving;
  for (int round = 0; round < 2 * kRounds; ++round) {
    const bool moves = round % 2 == 1;
    if (moves) mover.begin();
    const auto ticket = vm.guest().start("loop-for", {{"name", "work"}, {"seconds", kSpanSeconds}});
    std::optional<vmkit::GuestClient::Object> answer;
    while (!(answer = vm.guest().take(ticket))) {
      if (moves) mover.move();
      std::this_thread::sleep_for(kPoll);
    }
    (moves ? moving : quiet).add(*answer);
    if (moves) mover.end();
  }
  Row row{{"mode", mode_name}, {"memory", variant}};
  row["throughput_ratio"] = moving.rate() / quiet.rate();
  row["quiet_ops_per_s"] = quiet.rate();
  row["moving_ops_per_s"] = moving.rate();
  row["quiet_p50_us"] = quiet.p50_us;
  row["moving_p50_us"] = moving.p50_us;
  row["quiet_p99_us"] = quiet.p99_us;
  row["moving_p99_us"] = moving.p99_us;
  row["cycles"] = mover.cycles();
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
