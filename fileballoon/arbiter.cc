#include "fileballoon/arbiter.h"

#include <algorithm>
#include <cmath>

#include "fileballoon/elapsed.h"

namespace fileballoon {
namespace {

constexpr Pages pages_of(Bytes bytes) { return static_cast<Pages>(bytes.whole_pages()); }
constexpr Bytes bytes_of(Pages pages) {
  return Bytes::pages(pages > 0 ? static_cast<std::uint64_t>(pages) : 0);
}

constexpr Pages kLeastSlackPages = pages_of(Arbiter::kLeastSlack);
constexpr Pages kMostSlackPages = pages_of(Arbiter::kMostSlack);
constexpr Pages kLeastChangePages = pages_of(Arbiter::kLeastChange);

Pages deadband(Pages ceiling) {
  return std::max(kLeastChangePages, ceiling / static_cast<Pages>(Arbiter::kDeadbandPart));
}

}  // namespace

Result<ArbiterConfig> make_arbiter_config(ArbiterConfig config) {
  if (!(config.idle_tax >= 0 && config.idle_tax <= 1)) {
    return Error{"idle tax " + std::to_string(config.idle_tax) +
                 " is not a rate; choose a value from 0 (isolation) to 1 (nothing stays idle)"};
  }
  return config;
}

Result<VmSettings> make_vm_settings(VmSettings settings) {
  settings.ram = settings.ram.page_floor();
  settings.minimum = settings.minimum.page_floor();
  settings.ceiling = settings.ceiling.page_floor();
  if (settings.ram == Bytes(0)) {
    return Error{"a VM without RAM cannot be arbitrated; check its memory size"};
  }
  if (settings.ceiling > settings.ram) {
    return Error{"target " + to_string(settings.ceiling) + " is above the guest's RAM of " +
                 to_string(settings.ram) + "; choose a target of at most that"};
  }
  if (settings.minimum > settings.ceiling) {
    return Error{"target " + to_string(settings.ceiling) + " is below the minimum of " +
                 to_string(settings.minimum) + "; lower the minimum first or raise the target"};
  }
  if (settings.band >= kBands) {
    return Error{"band " + std::to_string(settings.band) + " does not exist; choose 0 (first) to " +
                 std::to_string(kBands - 1)};
  }
  if (settings.weight > kMaxWeight) {
    return Error{"weight " + std::to_string(settings.weight) + " is too large; choose 0 to " +
                 std::to_string(kMaxWeight)};
  }
  return settings;
}

// ------------------------------------------------------------------------------------- membership

VmId Arbiter::add(const VmSettings& settings) {
  std::uint32_t index = 0;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(vms_.size());
    vms_.emplace_back();
    weight_.push_back(0);
    cap_.push_back(0);
    goal_.push_back(0);
    floor_.push_back(0);
    // Room for all, here, so that no tick allocates.
    order_.reserve(vms_.capacity());
    changed_.reserve(vms_.capacity());
    free_.reserve(vms_.capacity());
  } else {
    index = free_.back();
    free_.pop_back();
    vms_[index] = Vm{};
  }
  Vm& vm = vms_[index];
  vm.alive = true;
  change(VmId{index}, settings);
  vm.target = vm.goal = vm.need = vm.minimum;
  return VmId{index};
}

void Arbiter::remove(VmId id) {
  vms_[id.index] = Vm{};
  free_.push_back(id.index);
  order_is_old_ = true;
}

void Arbiter::change(VmId id, const VmSettings& settings) {
  Vm& vm = vms_[id.index];
  vm.ram = pages_of(settings.ram);
  vm.minimum = pages_of(settings.minimum);
  vm.ceiling = pages_of(settings.ceiling);
  vm.can_page = settings.can_page;
  vm.band = static_cast<std::uint8_t>(settings.band);
  weight_[id.index] = settings.weight;
  order_is_old_ = true;
}

void Arbiter::report(VmId id, const VmReport& report) {
  Vm& vm = vms_[id.index];
  // A guest's numbers are its own business: whatever it claims, it uses between nothing and its
  // RAM.
  vm.footprint = std::min(pages_of(report.footprint), vm.ram);
  if (report.idle) {
    vm.active = std::max<Pages>(0, vm.footprint - std::min(pages_of(*report.idle), vm.footprint));
  } else if (report.guest_known) {
    vm.active = vm.ram - std::min(pages_of(report.available), vm.ram);
  } else {
    vm.active = vm.footprint;
  }
  vm.paged = report.guest_known && !report.idle ? std::min(pages_of(report.paged), vm.ram) : 0;
  vm.asked = std::min(vm.asked + std::min(pages_of(report.asked_back), vm.ram), vm.ram);
  vm.deflated = std::min(vm.deflated + std::min(pages_of(report.deflated), vm.ram), vm.ram);
}

void Arbiter::rebuild_order() {
  std::array<std::uint32_t, kBands> next{};
  for (const Vm& vm : vms_) {
    next.at(vm.band) += vm.alive ? 1 : 0;
  }
  std::uint32_t begin = 0;
  for (unsigned b = 0; b < kBands; ++b) {
    band_begin_.at(b) = begin;
    begin += std::exchange(next.at(b), begin);
  }
  band_begin_.at(kBands) = begin;
  order_.resize(begin);
  for (std::uint32_t i = 0; i < vms_.size(); ++i) {
    if (vms_[i].alive) {
      order_[next.at(vms_[i].band)++] = i;
    }
  }
  order_is_old_ = false;
}

std::span<const std::uint32_t> Arbiter::band(unsigned b) const {
  return std::span(order_).subspan(band_begin_.at(b), band_begin_.at(b + 1) - band_begin_.at(b));
}

// ------------------------------------------------------------------------------------------- tick

const TickSummary& Arbiter::tick(const HostReport& host, Clock::time_point now) {
  const Duration passed = ticked_ ? elapsed(last_, now, kLongestTick) : Duration{};
  last_ = now;
  ticked_ = true;
  if (order_is_old_) {
    rebuild_order();
  }
  Pages footprints = 0;
  for (const std::uint32_t i : order_) {
    footprints += vms_[i].footprint;
  }
  pressure_.update(host, bytes_of(footprints), passed);
  summary_ = {};
  summary_.level = pressure_.level();
  summary_.capacity = pressure_.capacity();
  summary_.budget = pressure_.budget();
  summary_.footprints = bytes_of(footprints);

  estimate(passed);
  plan();
  lower();
  raise_fast();
  first_waiting_ = raise_needs();
  if (first_waiting_ < kBands) {
    // For memory that others hold: no step is too small for a lower band now, and nobody is spared.
    take_from_below(first_waiting_);
    first_waiting_ = raise_needs();
  }
  raise_calm();
  allow_force();
  finish();
  return summary_;
}

/// What each guest needs, from what it uses: up at once, down slowly.
void Arbiter::estimate(Duration passed) {
  const double seconds = std::chrono::duration<double>(passed).count();
  const double need_left = std::exp(-seconds / std::chrono::duration<double>(kNeedFall).count());
  const double boost_left = std::exp(-seconds / std::chrono::duration<double>(kBoostFall).count());
  const double recent_left =
      std::exp(-seconds / std::chrono::duration<double>(kRecentFall).count());
  for (const std::uint32_t i : order_) {
    Vm& vm = vms_[i];
    vm.before = vm.target;
    vm.target = std::clamp(vm.target, vm.minimum, vm.ceiling);  // settings may have changed
    vm.boost = static_cast<Pages>(static_cast<double>(vm.boost) * boost_left);
    // Over all ticks of a second, since there are more of them while a guest takes memory. What was
    // taken before is in what the guest uses by now: it is not added up.
    vm.recent = static_cast<Pages>(static_cast<double>(vm.recent) * recent_left) + vm.deflated;
    vm.fast =
        vm.deflated > 0 && vm.recent >= std::max(pages_of(kFastDeflateLeast),
                                                 vm.ram / static_cast<Pages>(kFastDeflatePart));
    if (vm.fast) {
      vm.boost = std::max(vm.boost, std::min(vm.ram, 2 * vm.recent));
      vm.hold = kHold;
    } else {
      vm.hold = std::max(Duration::zero(), vm.hold - passed);
    }
    vm.deflated = 0;
    const Pages slack = std::clamp(vm.active / 8, kLeastSlackPages, kMostSlackPages);
    const Pages seen = vm.active + slack + vm.boost;
    const Pages faded = seen + static_cast<Pages>(static_cast<double>(vm.wish - seen) * need_left);
    vm.wish = std::clamp(std::max(seen, faded), vm.minimum, vm.ceiling + 2 * vm.paged);
    const Pages rest = at_rest(vm, slack, boost_left);
    vm.need = std::clamp(vm.wish - rest, vm.minimum, vm.ceiling);
    vm.present = std::clamp(seen - rest, vm.minimum, vm.ceiling);
    watch_progress(vm, passed);
  }
}

/// What a guest uses, lies in a store and is not asked back: nothing that it needs memory for.
/// Which of its paged-out pages a guest still uses nobody says; but what it uses beyond what it
/// holds must lie there. What it has lately asked back, or has newly come to use, it needs.
Pages Arbiter::at_rest(Vm& vm, Pages slack, double boost_left) {
  const Pages newly = vm.starting ? 0 : std::max<Pages>(0, vm.active - vm.used_lately);
  vm.used_lately = vm.active - static_cast<Pages>(static_cast<double>(newly) * boost_left);
  const Pages beyond = vm.active + slack - vm.footprint - vm.asked - newly;
  vm.asked = static_cast<Pages>(static_cast<double>(vm.asked) * boost_left);
  // With slack: of who does without that much, and does not miss it, none is needed ahead.
  return std::clamp<Pages>(beyond, 0, vm.paged + std::min(slack, vm.paged));
}

/// Notes how long a VM that should give has given nothing.
void Arbiter::watch_progress(Vm& vm, Duration passed) const {
  if (vm.stuck > Duration::zero()) {
    vm.stuck = std::max(Duration::zero(), vm.stuck - passed);
    vm.above = {};
    vm.lowest = vm.footprint;
    return;
  }
  const Pages tolerance = deadband(vm.ceiling) / 2;
  const bool is_above = vm.footprint > vm.target + tolerance;
  const bool was_above = vm.above > Duration::zero();
  if (!is_above || !was_above || vm.footprint + tolerance / 4 < vm.lowest) {
    if (was_above && vm.footprint < vm.lowest) {
      vm.stuck_next = kStuckRetry;  // it does give
    }
    vm.lowest = vm.footprint;
    vm.above = is_above ? Duration(1) : Duration::zero();  // a moment: "above" has begun
    return;
  }
  vm.above += passed;
  if (vm.above >= kPatience && !vm.can_page) {
    vm.stuck = vm.stuck_next;
    vm.stuck_next = std::min<Duration>(2 * vm.stuck_next, kStuckRetryMost);
  }
}

/// Sets every goal. Their sum is within the budget, or the minimums alone exceed it.
void Arbiter::plan() {
  const Pages budget = pages_of(summary_.budget);
  Pages minimums = 0;
  Pages floors = 0;
  for (const std::uint32_t i : order_) {
    const Vm& vm = vms_[i];
    minimums += vm.minimum;
    floor_[i] =
        vm.stuck > Duration::zero() ? std::clamp(vm.footprint, vm.minimum, vm.ceiling) : vm.minimum;
    floors += floor_[i];
  }
  if (floors > budget) {  // too much is stuck to plan around it
    floors = minimums;
    for (const std::uint32_t i : order_) {
      floor_[i] = vms_[i].minimum;
    }
  }
  summary_.shortage = bytes_of(minimums - pages_of(summary_.capacity));
  Pages pool = std::max<Pages>(0, budget - floors);

  // First what each claims, band after band; then what it holds beyond; then room to grow. A lower
  // band's claim comes before a higher band's taxed idle memory, and everybody's idle memory before
  // anybody's room to grow. Within a band what guests use now comes before what they used a while
  // ago: a job that has ended must not hold back one that runs.
  const double kept_idle = 1 - config_.idle_tax;
  for (const std::uint32_t i : order_) {
    goal_[i] = floor_[i];
    cap_[i] = std::max<Pages>(0, vms_[i].present - floor_[i]);
  }
  for (unsigned b = 0; b < kBands; ++b) {
    pool = fill(band(b), cap_, weight_, pool, goal_);
    for (const std::uint32_t i : band(b)) {
      const Vm& vm = vms_[i];
      const Pages idle = std::max<Pages>(0, vm.footprint - vm.need);
      // The untaxed part is one of all that could be idle, not of what is idle now: else each tick
      // would tax what the last one had left.
      const auto untaxed =
          static_cast<Pages>(static_cast<double>(vm.ceiling - vm.need) * kept_idle);
      const Pages claim = vm.need + std::min(idle, untaxed);
      cap_[i] = std::max<Pages>(0, claim - goal_[i]);
    }
    pool = fill(band(b), cap_, weight_, pool, goal_);
  }
  for (const std::uint32_t i : order_) {
    cap_[i] = std::max<Pages>(0, std::min(vms_[i].footprint, vms_[i].ceiling) - goal_[i]);
  }
  for (unsigned b = 0; b < kBands && pool > 0; ++b) {
    pool = fill(band(b), cap_, weight_, pool, goal_);
  }
  if (pool > 0) {
    for (const std::uint32_t i : order_) {
      cap_[i] = vms_[i].ceiling - goal_[i];
    }
    for (unsigned b = 0; b < kBands && pool > 0; ++b) {
      pool = fill(band(b), cap_, weight_, pool, goal_);
    }
  }

  first_lacking_ = kBands;
  for (unsigned b = kBands; b-- > 0;) {
    Pages lacking = 0;
    for (const std::uint32_t i : band(b)) {
      Vm& vm = vms_[i];
      vm.goal = goal_[i];
      lacking += std::max<Pages>(0, vm.need - vm.goal);
    }
    summary_.lacking.at(b) = bytes_of(lacking);
    if (lacking > 0) {
      first_lacking_ = b;
    }
  }
  someone_lacks_ = first_lacking_ < kBands;
}

/// Orders VMs down to their goals, sparing those whom it can wait for.
void Arbiter::lower() {
  const bool patient = !someone_lacks_ && summary_.level < PressureLevel::hard;
  sum_targets_ = 0;
  sum_committed_ = 0;
  for (const std::uint32_t i : order_) {
    Vm& vm = vms_[i];
    sum_targets_ += vm.target;
    sum_committed_ += std::max(vm.target, vm.footprint);
    // While a band lacks memory, nothing stays with a lower one.
    const bool may_wait = vm.band <= first_lacking_;
    if (vm.goal >= vm.target) {
      vm.reason = vm.goal <= vm.minimum ? TargetReason::at_minimum
                  : vm.starting         ? TargetReason::starting
                                        : TargetReason::settled;
    } else if (may_wait && patient && vm.hold > Duration::zero()) {
      vm.reason = TargetReason::holding;
    } else if (may_wait && vm.footprint <= vm.goal) {
      vm.reason = TargetReason::settled;  // room to grow that it does not use; taken when needed
    } else if (may_wait && vm.target - vm.goal < deadband(vm.ceiling)) {
      vm.reason = TargetReason::within_band;
    } else {
      lower_to_goal(vm);
    }
  }
  // What was spared must fit, and where it does not, few are asked for much rather than many for
  // little: large steps first, of room that nobody uses, the lowest band before others.
  const Pages budget = pages_of(summary_.budget);
  if (sum_targets_ <= budget + pages_of(summary_.capacity) / kSpareParts) {
    return;
  }
  for (const auto& [only_unused, only_large] :
       {std::pair(true, true), std::pair(true, false), std::pair(false, false)}) {
    for (auto i = order_.rbegin(); i != order_.rend() && sum_targets_ > budget; ++i) {
      Vm& vm = vms_[*i];
      const bool is_asked = vm.goal < vm.target && (!only_unused || vm.footprint <= vm.goal) &&
                            (!only_large || vm.target - vm.goal >= deadband(vm.ceiling));
      if (is_asked) {
        lower_to_goal(vm);
      }
    }
  }
}

/// Takes back what lower() spared in the bands below `b`.
void Arbiter::take_from_below(unsigned b) {
  for (const std::uint32_t i : std::span(order_).subspan(band_begin_.at(b + 1))) {
    Vm& vm = vms_[i];
    if (vm.goal < vm.target && vm.reason != TargetReason::fast_deflate) {
      lower_to_goal(vm);
    }
  }
}

void Arbiter::lower_to_goal(Vm& vm) {
  sum_targets_ -= vm.target - vm.goal;
  sum_committed_ -= std::max(vm.target, vm.footprint) - std::max(vm.goal, vm.footprint);
  vm.target = vm.goal;
  vm.reason = vm.goal <= vm.minimum ? TargetReason::at_minimum
              : vm.goal < vm.need   ? TargetReason::lowered_need
                                    : TargetReason::lowered_idle;
}

/// Raises the VMs of one band to want(vm), each by the same part where `limit` does not allow all.
/// Returns whether everyone got all. `in_part`: a part of a raise is better than none.
template <class Want>
bool Arbiter::raise_band(unsigned b, Pages limit, bool in_part, TargetReason reason, Want want) {
  bool all = true;
  // Up to what a VM holds anyway a raise costs the host nothing, and only the sum of targets
  // counts; beyond, so does what all VMs may hold.
  for (const bool held : {true, false}) {
    const auto goal_of = [&](const Vm& vm) {
      const Pages wanted = want(vm);
      return held ? std::min(wanted, vm.footprint) : wanted;
    };
    Pages asked = 0;
    for (const std::uint32_t i : band(b)) {
      asked += std::max<Pages>(0, goal_of(vms_[i]) - vms_[i].target);
    }
    if (asked == 0) {
      continue;
    }
    const Pages used = held ? sum_targets_ : std::max(sum_targets_, sum_committed_);
    const double part = std::min(
        1.0, static_cast<double>(std::max<Pages>(0, limit - used)) / static_cast<double>(asked));
    for (const std::uint32_t i : band(b)) {
      Vm& vm = vms_[i];
      const Pages missing = goal_of(vm) - vm.target;
      if (missing <= 0) {
        continue;
      }
      Pages given = part >= 1 ? missing : static_cast<Pages>(static_cast<double>(missing) * part);
      if (!in_part && given < std::min(want(vm) - vm.target, deadband(vm.ceiling))) {
        given = 0;  // not worth an order
      }
      sum_committed_ +=
          std::max(vm.target + given, vm.footprint) - std::max(vm.target, vm.footprint);
      sum_targets_ += given;
      vm.target += given;
      all = all && (held || given == missing);
      if (given == missing) {
        vm.reason = reason;
      } else if (reason != TargetReason::fast_deflate) {
        vm.reason = TargetReason::waiting;
      } else if (given > 0) {
        vm.reason = reason;  // in part, and at once
      }
    }
  }
  return all;
}

/// Guests that took memory back since the last tick, at once and out of what the plan keeps free.
/// Not in a band that lacks memory: there everybody is short, and one VM's raise would be taken
/// from its neighbours a moment later.
void Arbiter::raise_fast() {
  for (unsigned b = 0; b < kBands && b < first_lacking_; ++b) {
    (void)raise_band(
        b, pages_of(summary_.capacity), true, TargetReason::fast_deflate, [](const Vm& vm) {
          return vm.fast ? std::max(vm.goal, std::min(vm.ceiling, vm.footprint + vm.boost / 2))
                         : vm.target;
        });
  }
}

/// Up to needs, band after band. Returns the band that has to wait for memory which others were
/// told to give, or kBands.
unsigned Arbiter::raise_needs() {
  // Half-way into what is kept free: more than the plan, less than what bursts are served from.
  const Pages limit = pages_of(Bytes(static_cast<std::uint64_t>(
      static_cast<double>(summary_.capacity.count()) * (1 - HostPressure::kFreeSoft))));
  for (unsigned b = 0; b < kBands; ++b) {
    const bool all =
        raise_band(b, std::max(limit, pages_of(summary_.budget)), true, TargetReason::raised_need,
                   [](const Vm& vm) { return std::min(vm.goal, vm.need); });
    if (!all) {
      return b;  // nothing for a lower band while this one waits
    }
  }
  return kBands;
}

/// Beyond needs: when the host has been calm for a while, or for a VM that has just come.
void Arbiter::raise_calm() {
  const bool calm = pressure_.level() == PressureLevel::high;
  const auto want = [calm](const Vm& vm) {
    // Room that a VM does not use yet is room enough: handing out more would only be taken back
    // when somebody else grows.
    const bool uses_its_room = vm.footprint + deadband(vm.ceiling) > vm.target;
    const bool worth_it = calm && uses_its_room && vm.goal - vm.target >= deadband(vm.ceiling);
    return worth_it || vm.starting ? vm.goal : vm.target;
  };
  for (unsigned b = 0; b < kBands; ++b) {
    const bool all =
        raise_band(b, pages_of(pressure_.calm_budget()), false, TargetReason::raised_calm, want);
    if (!all) {
      return;
    }
  }
}

/// By will before by force: force is for those who gave nothing, and only while it helps someone.
void Arbiter::allow_force() {
  const bool needed = someone_lacks_ || first_waiting_ < kBands ||
                      summary_.level >= PressureLevel::hard ||
                      sum_committed_ > pages_of(summary_.capacity);
  for (const std::uint32_t i : order_) {
    Vm& vm = vms_[i];
    vm.by_force = 0;
    if (vm.reason == TargetReason::fast_deflate) {
      continue;  // a guest in need is not pressed further in the same breath
    }
    if (vm.stuck > Duration::zero()) {
      vm.reason = TargetReason::stuck_refused;
    } else if (needed && vm.can_page && vm.above >= kPatience) {
      vm.by_force = std::max<Pages>(0, vm.footprint - vm.target);
      vm.reason = vm.by_force > 0 ? TargetReason::stuck_paging : vm.reason;
    }
  }
}

void Arbiter::finish() {
  changed_.clear();
  Pages targets = 0;
  Pages needs = 0;
  for (const std::uint32_t i : order_) {
    Vm& vm = vms_[i];
    if (vm.target != vm.before || vm.starting) {
      changed_.push_back(VmId{i});
    }
    vm.starting = false;
    targets += vm.target;
    needs += vm.need;
  }
  summary_.targets = bytes_of(targets);
  summary_.needs = bytes_of(needs);
  summary_.changed = static_cast<std::uint32_t>(changed_.size());
}

VmDecision Arbiter::decision(VmId id) const {
  const Vm& vm = vms_[id.index];
  return {bytes_of(vm.target), bytes_of(vm.goal), bytes_of(vm.need), bytes_of(vm.by_force),
          vm.reason};
}

Arbiter::Preview Arbiter::dry_run(const HostReport& host, Clock::time_point now) const {
  Arbiter copy = *this;
  Preview preview;
  preview.summary = copy.tick(host, now);
  preview.host = copy.explain_host();
  for (const VmId id : copy.changed()) {
    preview.changes.emplace_back(id, copy.explain(id));
  }
  return preview;
}

}  // namespace fileballoon
