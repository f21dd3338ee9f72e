#include "bench/arbiter_sim_guests.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fileballoon::bench {
namespace {

double uniform(std::mt19937_64& random, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random);
}

double as_double(Bytes bytes) { return static_cast<double>(bytes.count()); }

/// Where the working set of guest `i` goes now.
void choose_goal(GuestFleet& f, std::size_t i, double now_s, std::mt19937_64& random) {
  const double ram = as_double(f.settings[i].ram);
  switch (f.load[i]) {
    case Load::diurnal: {
      // A quarter of RAM at night, 70 % at the busiest hour, 5 % of noise.
      const double hour = now_s / 3600 + f.phase[i];
      const double day = (1 - std::cos(hour / 24 * 2 * std::numbers::pi)) / 2;
      f.goal[i] = ram * (0.25 + 0.45 * day + 0.05 * f.noise[i]);
      break;
    }
    case Load::bursty:
      if (now_s >= f.until_s[i]) {
        const bool starts = f.goal[i] < ram * 0.25;
        f.goal[i] = ram * (starts ? uniform(random, 0.4, 0.8) : uniform(random, 0.1, 0.2));
        f.until_s[i] = now_s + (starts ? uniform(random, 20, 300) : uniform(random, 300, 3600));
      }
      break;
    case Load::batch:
      if (now_s >= f.until_s[i]) {
        const bool starts = f.goal[i] < ram * 0.3;
        f.goal[i] = ram * (starts ? uniform(random, 0.7, 0.95) : uniform(random, 0.05, 0.1));
        f.until_s[i] =
            now_s + (starts ? uniform(random, 600, 3600) : uniform(random, 3600, 6 * 3600));
      }
      break;
    case Load::steady:
      f.goal[i] = ram * (0.6 + 0.05 * f.noise[i]);
      break;
  }
}

}  // namespace

GuestFleet make_fleet(std::size_t count, std::mt19937_64& random) {
  GuestFleet f;
  for (std::size_t i = 0; i < count; ++i) {
    VmSettings s;
    s.ram = Bytes::gib(1ULL << (random() % 5));
    s.ceiling = s.ram;
    s.minimum = Bytes(s.ram.count() / 10);
    s.band = random() % 5 == 0 ? 0 : 1 + static_cast<unsigned>(random() % 3);
    s.weight = 100 * (1 + static_cast<std::uint32_t>(random() % 4));
    s.can_page = random() % 2 == 0;
    f.settings.push_back(make_vm_settings(s).value());
    f.load.push_back(static_cast<Load>(random() % 4));
    f.gives.push_back(random() % 50 != 0);
    f.phase.push_back(uniform(random, -3, 3));
    f.until_s.push_back(uniform(random, 0, 3600));
    f.active.push_back(as_double(s.ram) * 0.1);
    f.goal.push_back(f.active.back());
    f.footprint.push_back(f.active.back());
    f.cold.push_back(random() % 2 == 0 ? 0.5 : 0);
    f.paged.push_back(0);
    f.asked.push_back(0);
    f.deflated.push_back(0);
    f.noise.push_back(0);
  }
  return f;
}

void move_working_sets(GuestFleet& f, double now_s, double step_s, std::mt19937_64& random) {
  // Noise that wanders, and comes back within a quarter of an hour.
  const double keep = std::exp(-step_s / 900);
  const double kick = std::sqrt(1 - keep * keep) * std::sqrt(3.0);
  for (std::size_t i = 0; i < f.size(); ++i) {
    f.noise[i] = std::clamp(f.noise[i] * keep + uniform(random, -kick, kick), -1.0, 1.0);
    choose_goal(f, i, now_s, random);
    const double step = f.goal[i] - f.active[i];
    // Services drift; a job or a burst touches memory as fast as it can.
    const bool drifts = f.load[i] == Load::diurnal || f.load[i] == Load::steady;
    const double rate = drifts ? as_double(f.settings[i].ram) / 1200 : kFillRate;
    f.active[i] += std::clamp(step, -rate * step_s, rate * step_s);
  }
}

void live(GuestFleet& f, const Arbiter& arbiter, double step_s) {
  for (std::size_t i = 0; i < f.size(); ++i) {
    const VmDecision order = arbiter.decision(f.id[i]);
    const double target = as_double(order.target);
    double& footprint = f.footprint[i];
    f.paged[i] = std::min(f.paged[i], f.active[i]);
    // Pages of the working set that were taken by force come back on their faults, unless they are
    // being taken: a guest that is short of memory runs, slowly. What it does not miss stays out.
    const double wanted = order.by_force > Bytes(0) ? std::min(f.touched(i), target) : f.touched(i);
    if (footprint < wanted) {
      const double taken = std::min(wanted - footprint, kFillRate * step_s);
      const double missed = std::max(0.0, f.paged[i] - f.cold[i] * f.active[i]);
      const double back = std::min(taken, missed);
      footprint += taken;
      f.paged[i] -= back;
      f.asked[i] += back;
      f.deflated[i] += taken - back;
    } else if (footprint > target) {
      const double used = f.active[i] - f.paged[i];  // of what it holds
      if (f.gives[i]) {
        footprint = std::max(std::max(target, used), footprint - kInflateRate * step_s);
      }
      if (order.by_force > Bytes(0)) {
        footprint = std::max(target, footprint - kPageOutRate * step_s);
        f.paged[i] += std::max(0.0, used - footprint);
      }
    } else {
      footprint = std::min(target, footprint + kCacheRate * step_s);
    }
  }
}

}  // namespace fileballoon::bench
