// RecordedRun: a guest with a disk under one mode, whose footprint is recorded while it idles,
// while a workload runs in it, and afterwards; and what the workload cost in between. Scenarios
// "tracking" and "build" are made of it, so that their figures mean the same. One thread at a time.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "bench/vm_bench/measure.h"
#include "bench/vm_bench/recorder.h"

namespace fileballoon::bench {

class RecordedRun {
 public:
  /// The guest alone, before the workload; what it occupies at the end of that is its idle
  /// footprint.
  static constexpr std::chrono::seconds kIdle{10};
  static constexpr double kIdleMeasured = 2;

  /// Every mode that follows, or might be said to follow, what a guest uses.
  [[nodiscard]] static std::vector<std::string> modes();

  /// Boots the guest with `disk` as /dev/vda, runs `mount` in its shell, and records it idle.
  /// `fixed_target`: of a balloon that does not yield by itself; one that does may have all RAM.
  /// Throws std::exception.
  RecordedRun(const std::string& mode, const Settings& settings, const std::string& disk,
              const std::string& mount, Bytes fixed_target);

  [[nodiscard]] vmkit::Vm& vm() { return *stage_.vm; }
  [[nodiscard]] Recorder& recorder() { return recorder_; }

  /// Around the workload.
  void begin();
  void end();

  /// Fields that both scenarios have; after end(), and after all has been recorded.
  void describe(Row& row);

 private:
  Stage stage_;
  Recorder recorder_;
  std::optional<CpuMeter> cpu_;
  CpuMeter::Reading used_;
  GuestCost before_;
  GuestCost cost_;
  std::uint64_t oom_kills_ = 0;
};

}  // namespace fileballoon::bench
