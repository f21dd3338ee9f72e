// Arbiter: divides the host's memory between its VMs. Each tick it is told what the host and the
// guests look like and answers with a target (a footprint) for each VM and the reason in words. It
// makes no system call and never blocks; time comes in as a value. A tick is linear in the number
// of VMs and allocates nothing. One thread at a time; a copy is a snapshot to try things on.
//
// The idea (docs/policy.md): a VM *claims* what it needs and, of its idle memory, the part that the
// idle-memory tax leaves it. Bands are served in order, by weight where a band's claims exceed what
// is left; then VMs keep what they hold; then they may grow. Lowering is an order at once. Raising
// waits until somebody has really given the memory, except for a guest that takes memory back fast:
// that is its pressure signal, and what the plan keeps free is there for it.
#pragma once

#include <chrono>
#include <span>
#include <utility>
#include <vector>

#include "fileballoon/arbiter_fill.h"
#include "fileballoon/arbiter_pressure.h"
#include "fileballoon/arbiter_types.h"

namespace fileballoon {

struct ArbiterConfig {
  /// The part of its idle memory that a VM can lose to VMs of lower bands or of its own: 0 is pure
  /// isolation, 1 leaves nothing idle while anyone has a use for it. ESX's default.
  double idle_tax = 0.75;
};

/// Checks a configuration: 0 <= idle_tax <= 1.
[[nodiscard]] Result<ArbiterConfig> make_arbiter_config(ArbiterConfig config);

/// Names a VM in one arbiter, from add() to remove(); numbers are used again.
struct VmId {
  std::uint32_t index = 0;
  bool operator==(const VmId&) const = default;
};

class Arbiter {
 public:
  using Clock = std::chrono::steady_clock;
  using Duration = std::chrono::nanoseconds;

  /// No more than this passes in one tick, however far the clock jumped: a suspended host must not
  /// find every patience run out. A clock that goes backwards stands still for one tick.
  static constexpr std::chrono::seconds kLongestTick{5};
  /// A guest's use is believed at once when it rises, and falls with this time constant: giving too
  /// late costs the guest refaults, taking too late costs the host a minute of idle memory.
  static constexpr std::chrono::seconds kNeedFall{60};
  /// Room above what a guest uses, so that it need not reclaim at once: an eighth of it, at least
  /// what Linux keeps below its watermarks in guests of common size, at most what it can fill
  /// between two ticks.
  static constexpr Bytes kLeastSlack = Bytes::mib(64);
  static constexpr Bytes kMostSlack = Bytes::gib(4);
  /// A deflation within one report of this part of RAM is fast …
  static constexpr std::uint64_t kFastDeflatePart = 128;
  /// … if it is also this large; less is reclaim at its everyday work.
  static constexpr Bytes kFastDeflateLeast = Bytes::mib(8);
  /// A fast deflate adds twice what was taken within about this time to the need: as much again
  /// before a report of the guest shows it.
  static constexpr std::chrono::seconds kRecentFall{1};
  /// What a fast deflate adds to the need fades with this time constant.
  static constexpr std::chrono::seconds kBoostFall{30};
  /// After a fast deflate the target is not lowered for so long (unless somebody waits).
  static constexpr std::chrono::seconds kHold{10};
  /// A plan closer to the target than this part of the ceiling, or than kLeastChange, is no order.
  static constexpr std::uint64_t kDeadbandPart = 50;
  static constexpr Bytes kLeastChange = Bytes::mib(16);
  /// Targets that were spared a small step may exceed the plan by this part of the capacity (1 %),
  /// within what is kept free, before they are asked all the same.
  static constexpr Pages kSpareParts = 100;
  /// A footprint that has not come closer to its target for so long shows that will has ended:
  /// twice the default time that a VM's own policy gives its primary mechanism.
  static constexpr std::chrono::seconds kPatience{10};
  /// How long the memory of a guest that gives nothing and may not be forced counts as taken before
  /// it is asked again; doubled each time up to the second value.
  static constexpr std::chrono::seconds kStuckRetry{60};
  static constexpr std::chrono::seconds kStuckRetryMost{960};

  explicit Arbiter(ArbiterConfig config = {}) : config_(config) {}

  /// Takes a VM in. Its first target comes with the next tick.
  [[nodiscard]] VmId add(const VmSettings& settings);
  void remove(VmId id);
  /// New settings for a VM; they count from the next tick.
  void change(VmId id, const VmSettings& settings);
  void configure(ArbiterConfig config) { config_ = config; }
  /// What was last seen of a VM. `deflated` adds up until the next tick.
  void report(VmId id, const VmReport& report);

  /// Divides anew. `host` must be no older than the reports.
  const TickSummary& tick(const HostReport& host, Clock::time_point now);

  [[nodiscard]] const TickSummary& summary() const { return summary_; }
  /// VMs whose target the last tick changed, in no order.
  [[nodiscard]] std::span<const VmId> changed() const { return changed_; }
  [[nodiscard]] VmDecision decision(VmId id) const;
  /// "raised to 1.5 GiB: the guest uses more"; for stats, events and dry runs.
  [[nodiscard]] std::string explain(VmId id) const;
  /// "memory high: 12 GiB of 64 GiB free, …"
  [[nodiscard]] std::string explain_host() const;

  struct Preview {
    TickSummary summary;
    std::string host;
    std::vector<std::pair<VmId, std::string>> changes;
  };
  /// What a tick would do now and why; changes nothing.
  [[nodiscard]] Preview dry_run(const HostReport& host, Clock::time_point now) const;

  [[nodiscard]] std::size_t size() const { return order_.size(); }

 private:
  // Everything of a VM that a tick reads, as one record: a tick walks VMs in band order, and a
  // record a VM costs fewer cache misses than an array a field.
  struct Vm {
    Pages ram = 0;
    Pages minimum = 0;
    Pages ceiling = 0;
    Pages footprint = 0;
    Pages active = 0;
    Pages deflated = 0;     // since the last tick
    Pages paged = 0;        // where the guest says what it uses
    Pages asked = 0;        // back from a store: since the last tick, and what is left of before
    Pages used_lately = 0;  // `active`, which it follows down at once and up with kBoostFall
    Pages wish = 0;         // need, paged-out memory included that nobody asks back
    Pages need = 0;
    Pages present = 0;  // need without what fades: what the guest uses now, slack and boost
    Pages recent = 0;   // deflated lately, fading with kRecentFall
    Pages boost = 0;
    Pages target = 0;
    Pages goal = 0;
    Pages by_force = 0;
    Pages lowest = 0;  // lowest footprint since it is above the target
    Pages before = 0;  // the target before this tick
    Duration above{};  // how long `lowest` has not fallen
    Duration hold{};
    Duration stuck{};  // how long its memory still counts as taken
    Duration stuck_next = kStuckRetry;
    std::uint8_t band = 0;
    bool alive = false;
    bool can_page = false;
    bool starting = true;
    bool fast = false;  // deflated fast since the last tick
    TargetReason reason = TargetReason::starting;
  };

  void rebuild_order();
  [[nodiscard]] std::span<const std::uint32_t> band(unsigned b) const;
  void estimate(Duration passed);
  [[nodiscard]] static Pages at_rest(Vm& vm, Pages slack, double boost_left);
  void watch_progress(Vm& vm, Duration passed) const;
  void plan();
  void lower();
  void lower_to_goal(Vm& vm);
  void take_from_below(unsigned b);
  void raise_fast();
  [[nodiscard]] unsigned raise_needs();
  void raise_calm();
  void allow_force();
  void finish();
  template <class Want>
  bool raise_band(unsigned b, Pages limit, bool in_part, TargetReason reason, Want want);

  ArbiterConfig config_;
  std::vector<Vm> vms_;
  std::vector<std::uint32_t> free_;
  std::vector<std::uint32_t> order_;  // live VMs by band
  std::array<std::uint32_t, kBands + 1> band_begin_{};
  bool order_is_old_ = false;
  // Scratch of plan(), indexed like vms_.
  std::vector<double> weight_;
  std::vector<Pages> cap_;
  std::vector<Pages> goal_;
  std::vector<Pages> floor_;
  std::vector<VmId> changed_;

  HostPressure pressure_;
  TickSummary summary_;
  bool someone_lacks_ = false;       // the plan leaves somebody below need
  unsigned first_waiting_ = kBands;  // the highest band that waits for what others have not given
  unsigned first_lacking_ = kBands;
  Pages sum_targets_ = 0;
  Pages sum_committed_ = 0;  // sum of max(target, footprint): what VMs can hold without asking
  Clock::time_point last_{};
  bool ticked_ = false;
};

}  // namespace fileballoon
