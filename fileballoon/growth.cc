#include "fileballoon/growth.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace fileballoon {

GrowthDecision Growth::decide(const GuestSample& sample, const Limits& limits,
                              Clock::time_point now) {
  if (sample.evicted_pages > last_evicted_) {
    quiet_until_ = now + kBackOff;
  }
  last_evicted_ = sample.evicted_pages;
  // A target inside a page would be "above" for ever, by no whole page.
  const Bytes target = limits.target.page_floor();
  if (sample.resident > target) {
    follow_target(target, 0, 0);
    return {GrowthReason::above_target, (sample.resident - target).whole_pages(), {}};
  }
  const std::uint64_t missing = (target - sample.resident).whole_pages();
  const std::uint64_t spare = (sample.free - sample.reserve).whole_pages();
  follow_target(target, missing, spare);
  if (missing == 0) {
    return {GrowthReason::at_target, 0, {}};
  }
  if (!sample.host_present) {
    return {GrowthReason::no_host, 0, {}};
  }
  if (now < quiet_until_) {
    return {GrowthReason::backing_off, 0, quiet_until_ - now};
  }
  if (now < pressed_until_) {
    return {GrowthReason::pressure, 0, pressed_until_ - now};
  }
  if (spare < std::min(missing, kMinPages)) {
    return {GrowthReason::below_reserve, 0,
            sees_work(now) ? std::chrono::nanoseconds(kReserveWatch) : kReserveRetry};
  }
  const std::uint64_t pages = std::min({missing, spare, batch_pages_});
  if (const auto wait = hold_back(pages, now); wait.count() > 0) {
    return {GrowthReason::beside_work, 0, wait};
  }
  return {GrowthReason::growing, pages, {}};
}

void Growth::follow_target(Bytes target, std::uint64_t missing, std::uint64_t spare) {
  if (target > last_target_) {
    lay_free_ = std::min(missing, spare);
    pace_ = std::max(kPagesBesideWork, lay_free_ / static_cast<std::uint64_t>(kRise.count()));
  }
  lay_free_ = std::min({lay_free_, missing, spare});
  last_target_ = target;
}

std::chrono::nanoseconds Growth::hold_back(std::uint64_t pages, Clock::time_point now) {
  if (lay_free_ == 0 || now >= others_work_until_) {
    earned_pages_ = 0;
    earned_at_ = now;
    return {};
  }
  const double passed = std::chrono::duration<double>(now - earned_at_).count();
  earned_pages_ = std::min(earned_pages_ + passed * static_cast<double>(pace_),
                           static_cast<double>(batch_pages_));
  earned_at_ = now;
  const double short_of = static_cast<double>(pages) - earned_pages_;
  return short_of <= 0
             ? std::chrono::nanoseconds(0)
             : std::chrono::nanoseconds(
                   1 + static_cast<std::int64_t>(1e9 * short_of / static_cast<double>(pace_)));
}

void Growth::note_taken(std::uint64_t pages) {
  lay_free_ -= std::min(lay_free_, pages);
  earned_pages_ = std::max(0.0, earned_pages_ - static_cast<double>(pages));
}

void Growth::note_others_cpu(double seconds, Clock::time_point now) {
  if (!others_cpu_s_) {
    others_cpu_s_ = seconds;
    others_cpu_at_ = now;
    return;
  }
  if (now - others_cpu_at_ < kCpuWindow) {
    return;
  }
  const double passed = std::chrono::duration<double>(now - others_cpu_at_).count();
  if (seconds - *others_cpu_s_ >= kWorkingCpus * passed) {
    others_work_until_ = now + kStillWorks;
  }
  others_cpu_s_ = seconds;
  others_cpu_at_ = now;
}

void Growth::note_stalls(std::optional<std::chrono::microseconds> total, Clock::time_point now) {
  if (!total || !stalls_ || *total < *stalls_ || now <= stalls_at_) {
    stalls_ = total;
    stalls_at_ = now;
    return;
  }
  if (now - stalls_at_ < kPressureWindow) {
    return;
  }
  const double stalled = std::chrono::duration<double>(*total - *stalls_).count();
  const double passed = std::chrono::duration<double>(now - stalls_at_).count();
  if (stalled >= kPressureShare * passed) {
    pressed_until_ = now + kPressurePause;
  }
  stalls_ = total;
  stalls_at_ = now;
}

std::string to_string(const GrowthDecision& decision) {
  const auto with_time = [&decision](const char* what) {
    if (decision.wait.count() == 0) {
      return std::string(what);
    }
    std::array<char, 96> text{};
    std::snprintf(text.data(), text.size(), "%s, %.1f s left", what,
                  std::chrono::duration<double>(decision.wait).count());
    return std::string(text.data());
  };
  switch (decision.reason) {
    case GrowthReason::growing:
      return "growing";
    case GrowthReason::at_target:
      return "at target";
    case GrowthReason::above_target:
      return "deflating to target";
    case GrowthReason::below_reserve:
      return "free memory below reserve";
    case GrowthReason::no_host:
      return "no session with a host";
    case GrowthReason::backing_off:
      return with_time("backing off after reclaim");
    case GrowthReason::pressure:
      return with_time("tasks wait for memory");
    case GrowthReason::host_rejects:
      return with_time("the host took little of the last batch");
    case GrowthReason::failed:
      return with_time("a batch failed, see the log");
    case GrowthReason::beside_work:
      return "growing slowly beside work";
    case GrowthReason::host_cannot_back:
      return "the host cannot back frames on request (deflate=tell-host-first)";
  }
  return "unknown";
}

}  // namespace fileballoon
