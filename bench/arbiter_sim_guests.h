// Synthetic guests for arbiter_sim: working sets that move as those of real services do, and the
// physics of a ballooned guest (how fast it gives, takes and caches). No system call, no clock;
// the same seed gives the same day.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "fileballoon/arbiter.h"

namespace fileballoon::bench {

/// How a guest uses memory over a day.
enum class Load : std::uint8_t {
  diurnal,  ///< follows the hour of the day, with noise: web and application servers
  bursty,   ///< a small base and bursts of seconds to minutes: CI, functions
  batch,    ///< idle, then a job that takes most of its RAM for 10 to 60 minutes
  steady,   ///< a data base: large, nearly constant
};

struct GuestFleet {
  // One array a field: a simulated tick walks all guests.
  std::vector<VmSettings> settings;
  std::vector<VmId> id;
  std::vector<Load> load;
  std::vector<bool> gives;        ///< false: a guest that never gives anything by will
  std::vector<double> phase;      ///< hours by which its day is shifted
  std::vector<double> until_s;    ///< when its burst or job ends, or the next one starts
  std::vector<double> active;     ///< working set, bytes
  std::vector<double> goal;       ///< where the working set is going, bytes
  std::vector<double> footprint;  ///< bytes
  std::vector<double> cold;       ///< part of its working set that it does not miss once paged out
  std::vector<double> paged;      ///< of its working set, in a store, bytes
  std::vector<double> asked;      ///< came back from there since the last report, bytes
  std::vector<double> deflated;   ///< balloon pages taken back since the last report, bytes
  std::vector<double> noise;      ///< slow random part of a diurnal load, -1 to 1

  [[nodiscard]] std::size_t size() const { return settings.size(); }
  /// What guest `i` has to have in memory not to wait for any, bytes.
  [[nodiscard]] double touched(std::size_t i) const {
    return active[i] - std::min(paged[i], cold[i] * active[i]);
  }
};

// The physics, in bytes a second: rounded assumptions about one guest, not measurements.
inline constexpr double kFillRate = 1.0 * (1ULL << 30);       ///< touching new memory
inline constexpr double kInflateRate = 300.0 * (1ULL << 20);  ///< giving by will
inline constexpr double kPageOutRate = 200.0 * (1ULL << 20);  ///< giving by force
inline constexpr double kCacheRate = 4.0 * (1ULL << 20);      ///< page cache filling by itself

/// `count` guests of 1 to 16 GiB, a fifth of them in band 0, the rest in bands 1 to 3; one in fifty
/// gives nothing by will, half may be paged; half of these do not miss a half of their working set.
[[nodiscard]] GuestFleet make_fleet(std::size_t count, std::mt19937_64& random);

/// Moves every working set on to `now_s`, `step_s` after the last call.
void move_working_sets(GuestFleet& fleet, double now_s, double step_s, std::mt19937_64& random);

/// Lets every guest take, give and cache for `step_s`, following its order from `arbiter`.
void live(GuestFleet& fleet, const Arbiter& arbiter, double step_s);

}  // namespace fileballoon::bench
