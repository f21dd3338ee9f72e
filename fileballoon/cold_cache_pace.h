// CachePace: how fast cold cache may go. It lets eviction speed up while nobody misses what was
// taken, and brakes hard when somebody does: when pages come back from disk that were evicted
// moments ago (workingset_refault_file), or when tasks stall for memory (PSI), as Senpai does it.
// Clock and counters enter as values. Not thread-safe; the agent's cache thread owns one.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace fileballoon {

class CachePace {
 public:
  using Clock = std::chrono::steady_clock;

  /// A first bite: 1 MiB costs a workload that wanted it back about a millisecond of disk.
  static constexpr std::uint64_t kFirstStep = 256;
  /// A step never grows beyond this (16 MiB) or this share of the cache, whichever is more: what is
  /// hot behind what was cold is noticed before much of it went, and a large guest full of cold
  /// cache is not made to wait for many minutes.
  static constexpr std::uint64_t kLastStep = 4096;
  static constexpr std::uint64_t kLastShare = 16;
  /// The step grows by this factor with each look that finds no harm in what was taken. A workload
  /// that passes over its files twice a second shows after two or three looks that they were hot: 7
  /// MiB by then.
  static constexpr std::uint64_t kGrowth = 2;
  /// Refaults this soon after an eviction are blamed on it (time constant of the forgetting).
  static constexpr std::chrono::milliseconds kBlame{4000};
  /// Harm: this many pages back (one batch of the kernel's reclaim is 64; fewer are chance) ...
  static constexpr std::uint64_t kRefaultNoise = 128;
  /// ... that are also this share of what was evicted (one in 16).
  static constexpr std::uint64_t kRefaultShare = 16;
  /// Harm: tasks stalled for this share of the time, after something was evicted (a guest that
  /// grows into the balloon stalls too, and cold cache that goes then helps it). Senpai's default,
  /// 10 ms in 6 s, is 0.17 %, for one cgroup; a whole guest stalls a little by itself when it
  /// starts something big.
  static constexpr double kStallShare = 0.005;
  /// How long nothing is taken after harm.
  static constexpr std::chrono::milliseconds kBrake{1000};
  /// The same after the first harm in a turn of which harm was expected (Sample::tentative). The
  /// kernel has seen the refaults too, and spares pages that were read as often as those.
  static constexpr std::chrono::milliseconds kShortBrake{150};
  /// The caution doubles with each harm by refaults up to this.
  static constexpr unsigned kMostCaution = 16;
  /// Calm for so long, times the caution, before the caution is halved.
  static constexpr std::chrono::milliseconds kCalm{5000};

  enum class State {
    free,        ///< eviction may go on
    refaulting,  ///< braking: evicted pages came back
    stalling,    ///< braking: tasks wait for memory
  };

  struct Sample {
    Clock::time_point at;
    std::uint64_t refaulted_pages = 0;                 ///< counter since boot
    std::optional<std::chrono::microseconds> stalled;  ///< PSI memory "some" total since boot
    std::uint64_t cache_pages = 0;                     ///< file pages that are not the balloon's
    bool tentative = false;  ///< what goes now was in use until a moment ago, and may be still
  };

  /// To be called before each decision; counters that run backwards start anew.
  void look(const Sample& sample);
  /// The guest's working set has shrunk: what was hot may be cold now.
  void forgive() { caution_ = 1; }
  /// Other pages than before come next (a generation that was closed later): begin with a first
  /// bite.
  void start_small() { step_ = kFirstStep; }
  /// `pages` have been evicted since the last look.
  void evicted(std::uint64_t pages);

  /// Pages that may go now; 0 while braking.
  [[nodiscard]] std::uint64_t allowance() const { return state_ == State::free ? step_ : 0; }
  [[nodiscard]] State state() const { return state_; }
  /// End of the present brake; meaningless while free.
  [[nodiscard]] Clock::time_point brake_end() const { return brake_end_; }
  /// 1 when undisturbed, doubling with each harm: by how much pages should be older than usual
  /// before they count as cold.
  [[nodiscard]] unsigned caution() const { return caution_; }
  /// Harms seen since start.
  [[nodiscard]] std::uint64_t brakes() const { return brakes_; }

 private:
  void brake(State why, const Sample& sample);

  std::optional<Sample> last_;
  bool took_ = false;  // since the last look
  double recent_evicted_ = 0;
  double recent_refaulted_ = 0;
  double stall_share_ = 0;
  std::uint64_t step_ = kFirstStep;
  State state_ = State::free;
  Clock::time_point brake_end_{};
  Clock::time_point relax_at_{};
  unsigned caution_ = 1;
  std::uint64_t brakes_ = 0;
};

}  // namespace fileballoon
