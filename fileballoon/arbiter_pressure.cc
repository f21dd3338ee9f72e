#include "fileballoon/arbiter_pressure.h"

#include <algorithm>

namespace fileballoon {
namespace {

/// Percentages come from text files; what is no number is no pressure.
double percent(double value) { return value >= 0 ? std::min(value, 100.0) : 0.0; }

PressureLevel level_of(double free_part, double some, double full) {
  if (free_part < HostPressure::kFreeLow || full >= HostPressure::kPsiFullLow) {
    return PressureLevel::low;
  }
  if (free_part < HostPressure::kFreeHard || full >= HostPressure::kPsiFullHard) {
    return PressureLevel::hard;
  }
  if (free_part < HostPressure::kFreeSoft || some >= HostPressure::kPsiSomeSoft) {
    return PressureLevel::soft;
  }
  return PressureLevel::high;
}

}  // namespace

void HostPressure::update(const HostReport& report, Bytes footprints, Duration passed) {
  capacity_ = footprints + report.available;
  if (report.limit) {
    capacity_ = std::min(capacity_, *report.limit);
  }
  const double some = percent(report.psi_some);
  const double full = percent(report.psi_full);
  const double free_part = capacity_.count() == 0
                               ? 0.0
                               : static_cast<double>((capacity_ - footprints).count()) /
                                     static_cast<double>(capacity_.count());
  const PressureLevel seen = level_of(free_part, some, full);
  if (seen > level_) {
    level_ = seen;
    better_ = {};
  } else if (seen < level_) {
    better_ += passed;
    if (better_ >= kCalm) {
      level_ = seen;
      better_ = {};
    }
  } else {
    better_ = {};
  }

  const double seconds = std::chrono::duration<double>(passed).count();
  const bool stalls = some >= kPsiSomeSoft || full >= kPsiFullHard;
  squeeze_ =
      std::clamp(squeeze_ + seconds * kSqueezePerSecond * (stalls ? 1.0 : -0.5), 0.0, kSqueezeMost);
  const double kept = std::min(1.0, kFreeHigh + squeeze_);
  budget_ = Bytes(static_cast<std::uint64_t>(static_cast<double>(capacity_.count()) * (1 - kept)))
                .page_floor();
  if (!updated_ || budget_ <= calm_budget_) {
    updated_ = true;
    calm_budget_ = budget_;
    above_ = {};
    return;
  }
  lowest_since_ = above_ == Duration{} ? budget_ : std::min(lowest_since_, budget_);
  above_ += std::max(passed, Duration(1));
  if (above_ > kCalm) {
    calm_budget_ = lowest_since_;
    above_ = {};
  }
}

std::string to_string(PressureLevel level) {
  switch (level) {
    case PressureLevel::high:
      return "high";
    case PressureLevel::soft:
      return "soft";
    case PressureLevel::hard:
      return "hard";
    case PressureLevel::low:
      return "low";
  }
  return "?";
}

}  // namespace fileballoon
