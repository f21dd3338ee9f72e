// PolicyRunner: carries out one VM's memory policy. It holds what the operator and the arbiter
// want, has the target policy (fileballoon/policy.h) judge what is measured, hands the order to the
// actors, and tells of every change of state. The Vm steps it several times a second. Control
// thread only; no system calls.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>

#include "fileballoon/policy.h"
#include "host/actor.h"
#include "host/event_log.h"
#include "host/memory_settings.h"

namespace fileballoon::host {

class PolicyRunner {
 public:
  using Clock = TargetPolicy::Clock;

  /// What is measured of the VM at one moment, beside what the actors know.
  struct Look {
    Bytes footprint;
    std::uint64_t evicted_pages = 0;  ///< by the guest's reclaim, since its agent started
    Bytes guest_free;                 ///< MemFree of the guest; zero where it is not known
    std::string pager_problem;        ///< as in PolicyInput
  };

  /// A balloon that has grown by kGrowth within this time still grows; a guest that has told of
  /// free memory and does not give it is waited for no longer.
  static constexpr std::chrono::seconds kGrowing{2};
  static constexpr Bytes kGrowth = Bytes::mib(1);
  /// Of its free memory a guest keeps this part of RAM: watermarks and the agent's margin.
  static constexpr std::uint64_t kReservePart = 16;

  /// All outlive this; `pager` may be null.
  PolicyRunner(std::string vm, Bytes ram, EventLog& events, Actor& balloon, Actor* pager);

  /// What was remembered of the VM, or configured for it. The error is about the first thing that
  /// does not fit the VM, and what does not fit is left at its default.
  [[nodiscard]] Result<void> restore(const MemorySettings& settings, Bytes ceiling);

  /// mem-set: the footprint wanted, at most; all RAM is as good as no target.
  [[nodiscard]] Result<void> set_ceiling(Bytes footprint);
  /// mem-policy; what is absent stays as it is. All or nothing.
  [[nodiscard]] Result<void> set_policy(std::optional<MemoryPolicy> policy,
                                        std::optional<std::chrono::milliseconds> timeout,
                                        std::optional<ActorName> actor);
  [[nodiscard]] Result<void> set_minimum(Bytes minimum);
  void set_weight(std::uint32_t weight) { settings_.weight = weight; }
  /// Only remembered here; the guest acts on it.
  void set_cache(CacheMode mode) { settings_.cache = mode; }

  /// What the arbiter gives the VM below its ceiling, and whether it may be paged for it.
  void set_share(Bytes target, bool may_force);
  /// The arbiter has nothing to say any more.
  void clear_share();

  void step(const Look& look, Clock::time_point now);

  [[nodiscard]] const MemorySettings& settings() const { return settings_; }
  [[nodiscard]] Bytes ceiling() const { return ceiling_; }
  [[nodiscard]] const std::optional<Bytes>& share() const { return share_; }
  /// The footprint wanted now: the lower of ceiling and share.
  [[nodiscard]] Bytes wanted() const;
  [[nodiscard]] const PolicyOrder& order() const { return policy_.order(); }
  [[nodiscard]] const std::string& reason() const { return policy_.reason(); }
  /// Whether policy and actor let the VM's frames be paged out at all.
  [[nodiscard]] bool allows_paging() const;
  /// allows_paging(), and there is a pager that can.
  [[nodiscard]] bool can_page() const;
  /// For `stats` and `mem-policy`.
  [[nodiscard]] boost::json::object describe() const;

 private:
  void apply_target();
  void tell();
  [[nodiscard]] Bytes balloon_room(const Look& look, Clock::time_point now);

  std::string vm_;
  Bytes ram_;
  EventLog& events_;
  Actor& balloon_;
  Actor* pager_;
  MemorySettings settings_;
  Bytes ceiling_;
  std::optional<Bytes> share_;
  bool may_force_ = true;
  TargetPolicy policy_;

  std::uint64_t evicted_ = 0;
  Bytes grown_to_;  // resident, when it last grew
  Clock::time_point grew_at_{};
  PolicyState told_ = PolicyState::no_target;
  std::optional<Bytes> told_target_;
};

}  // namespace fileballoon::host
