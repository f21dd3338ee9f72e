// HostPressure: from what the host says, how much memory there is to plan with and how bad things
// are. Levels worsen at once and improve only after a while (hysteresis). Pure; one per arbiter.
#pragma once

#include <algorithm>
#include <chrono>

#include "fileballoon/arbiter_types.h"

namespace fileballoon {

class HostPressure {
 public:
  using Duration = std::chrono::nanoseconds;

  // Free memory, as parts of the capacity, below which a level begins: the values that ESX has used
  // since 2002 (Waldspurger, section 6.3). High is the state with enough.
  static constexpr double kFreeHigh = 0.06;  ///< kept free by the plan, for bursts
  static constexpr double kFreeSoft = 0.04;  ///< below: memory is asked for (balloon)
  static constexpr double kFreeHard = 0.02;  ///< below: it is taken (paging)
  static constexpr double kFreeLow = 0.01;   ///< below: nothing is given to anyone any more

  // Stall percentages (PSI avg10) that count as a level whatever the free memory says: a host can
  // thrash with memory "available" in its cache. Someone stalled for 10 % of the time is noticed by
  // users; all tasks stalled is work lost for everyone, so half of that weighs more.
  static constexpr double kPsiSomeSoft = 10;
  static constexpr double kPsiFullHard = 5;
  static constexpr double kPsiFullLow = 20;

  /// How long a better state must last before it is believed: the window of avg10.
  static constexpr std::chrono::seconds kCalm{10};
  /// While PSI shows stalls the plan keeps this much more of the capacity free, each second …
  static constexpr double kSqueezePerSecond = 0.01;
  /// … up to this, and returns it at half the speed: quick to help, slow to believe.
  static constexpr double kSqueezeMost = 0.25;

  /// Takes a report of the host and the sum of the VMs' footprints, `passed` after the last one.
  void update(const HostReport& report, Bytes footprints, Duration passed);

  [[nodiscard]] PressureLevel level() const { return level_; }
  /// Memory that VMs may take altogether.
  [[nodiscard]] Bytes capacity() const { return capacity_; }
  /// Memory to plan for; the rest of the capacity stays free.
  [[nodiscard]] Bytes budget() const { return budget_; }
  /// The budget of the last kCalm at its lowest, nearly: what may be handed out beyond need, so
  /// that memory which comes and goes is not given only to be asked back.
  [[nodiscard]] Bytes calm_budget() const { return std::min(budget_, calm_budget_); }

 private:
  PressureLevel level_ = PressureLevel::high;
  Duration better_{};  // how long the level has looked better than level_
  double squeeze_ = 0;
  Bytes capacity_;
  Bytes budget_;
  Bytes calm_budget_;
  Bytes lowest_since_;  // lowest budget since it is above calm_budget_
  Duration above_{};    // for how long it is
  bool updated_ = false;
};

[[nodiscard]] std::string to_string(PressureLevel level);

}  // namespace fileballoon
