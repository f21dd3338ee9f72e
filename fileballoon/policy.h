// TargetPolicy: how one VM gets to its target. It is told the target, what is measured and the
// time, and answers how much the balloon should hold and how much may be paged out, with the state
// and its reason in words. The primary mechanism has a timeout to reach the target alone before the
// secondary starts; when the target rises or the guest takes memory back, the secondary gives way
// first. The daemon steps it at least once a second for each VM. Pure; one thread at a time.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/policy_names.h"

namespace fileballoon {

/// What is measured of one VM. Footprint, resident and paged are three numbers from three sources.
struct PolicyInput {
  Bytes footprint;         ///< host memory behind the guest's RAM
  Bytes balloon_resident;  ///< balloon pages in the guest's cache
  Bytes paged;             ///< content that lies in a store
  Bytes taken;             ///< balloon pages that the guest's reclaim took since the last step
  /// Memory that a balloon which is growing can still take. Never paged: it would go out with
  /// content that nobody wants, and come back only to be given away.
  Bytes balloon_room;
  bool has_agent = false;     ///< a session with balloonfs stands
  bool has_pager = false;     ///< this VM's frames can be paged out
  bool may_force = true;      ///< the arbiter allows paging now (always, for an operator's target)
  bool is_room = false;       ///< the target is what an arbiter lets the VM have, not what somebody
                              ///< wants it to shrink to
  std::string pager_problem;  ///< why page-out has stopped ("the store is full"); empty: it has not
};

enum class PolicyState : std::uint8_t {
  no_target,          ///< nobody asked for anything: the balloon stays empty
  at_target,          ///< within the tolerance
  giving_back,        ///< below the target: the guest may take memory, the secondary's first
  primary_working,    ///< the primary mechanism has time left
  secondary_working,  ///< the time is over: the secondary takes what is missing
  blocked,            ///< the target is not reached and nothing more can be done; see the reason
  watching,           ///< an external actor does it
};

/// What the mechanisms are to do now.
struct PolicyOrder {
  PolicyState state = PolicyState::no_target;
  Bytes balloon_target;     ///< upper limit of the balloon
  Bytes paging_target;      ///< how much content may lie in stores; below what does: page in
  bool is_changed = false;  ///< differs from the order of the step before
};

class TargetPolicy {
 public:
  using Clock = std::chrono::steady_clock;
  using Duration = std::chrono::nanoseconds;

  /// Time for the primary mechanism, unless the operator says otherwise: a guest that inflates
  /// 300 MiB/s gives 1.5 GiB in that time, and a host in need can wait so long.
  static constexpr std::chrono::seconds kDefaultTimeout{5};
  static constexpr std::chrono::seconds kLongestTimeout{3600};
  /// Footprints this close to the target have reached it: below what per-CPU lists and a batch in
  /// flight move in a guest at rest.
  static constexpr Bytes kLeastTolerance = Bytes::mib(4);
  static constexpr std::uint64_t kTolerancePart = 256;  ///< of RAM, where that is more
  /// A guest that is this part of RAM below its room needs no balloon yet: what it does not use it
  /// has mostly never touched, so giving that away costs CPU time and frees nothing.
  static constexpr std::uint64_t kRoomPart = 16;
  /// More than this passes in no step, so that a suspended host or a stalled daemon does not use up
  /// a timeout in which the primary mechanism could not run.
  static constexpr std::chrono::seconds kLongestStep{2};
  /// A guest that takes back this much within a step is in need: force starts no sooner than a
  /// timeout later …
  static constexpr Bytes kTaken = Bytes::mib(1);
  /// … but so often and no oftener until a target is reached: a guest that takes a little for ever
  /// could keep the host from its memory.
  static constexpr unsigned kMostPostponements = 3;

  explicit TargetPolicy(Bytes ram) : ram_(ram.page_floor()) {}

  /// The footprint wanted. The error names the numbers where it is above RAM or below the minimum.
  [[nodiscard]] Result<void> set_target(Bytes footprint);
  /// Nobody wants anything any more: everything is given back.
  void clear_target();
  /// A floor under targets. Fails where it is above RAM or above the present target.
  [[nodiscard]] Result<void> set_minimum(Bytes minimum);
  /// Fails outside (0, kLongestTimeout].
  [[nodiscard]] Result<void> set_timeout(Duration timeout);
  void set_policy(MemoryPolicy policy);
  void set_actor(ActorName actor);

  [[nodiscard]] std::optional<Bytes> target() const { return target_; }
  [[nodiscard]] Bytes minimum() const { return minimum_; }
  [[nodiscard]] MemoryPolicy policy() const { return policy_; }
  [[nodiscard]] Duration timeout() const { return timeout_; }
  [[nodiscard]] const ActorName& actor() const { return actor_; }

  /// Judges what was measured and gives the order for the mechanisms.
  const PolicyOrder& step(const PolicyInput& input, Clock::time_point now);
  [[nodiscard]] const PolicyOrder& order() const { return order_; }
  /// "waiting for balloon, 3.1 s left"; for stats and events.
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  void start_waiting();
  void pass_time(Clock::time_point now);
  [[nodiscard]] Bytes tolerance() const;
  [[nodiscard]] Duration left() const;
  PolicyOrder decide(const PolicyInput& input);
  PolicyOrder lower(const PolicyInput& input, Bytes missing);
  PolicyOrder give_back(const PolicyInput& input, Bytes surplus);

  Bytes ram_;
  Bytes minimum_;
  std::optional<Bytes> target_;
  MemoryPolicy policy_ = MemoryPolicy::balloon_then_page;
  ActorName actor_{ActorName::Kind::builtin, std::string(kDefaultActor)};
  Duration timeout_{kDefaultTimeout};

  std::optional<Clock::time_point> last_;
  Duration waited_{};  // how long the primary mechanism has been at it
  unsigned postponed_ = 0;
  PolicyOrder order_;
  std::string reason_ = "no target: the guest keeps what it uses";
};

[[nodiscard]] std::string_view to_string(PolicyState state);

}  // namespace fileballoon
