#include "host/policy_runner.h"

#include <algorithm>
#include <utility>

#include "host/actor_registry.h"

namespace fileballoon::host {

PolicyRunner::PolicyRunner(std::string vm, Bytes ram, EventLog& events, Actor& balloon,
                           Actor* pager)
    : vm_(std::move(vm)),
      ram_(ram.page_floor()),
      events_(events),
      balloon_(balloon),
      pager_(pager),
      ceiling_(ram_),
      policy_(ram_) {}

Result<void> PolicyRunner::restore(const MemorySettings& settings, Bytes ceiling) {
  settings_ = settings;
  settings_.minimum = Bytes(0);
  std::optional<Error> first;
  const auto note = [&first](const Result<void>& done) {
    if (!done && !first) {
      first = done.error();
    }
  };
  note(set_minimum(settings.minimum));
  note(set_ceiling(ceiling));
  note(set_policy(settings.policy, settings.timeout, settings.actor));
  return first ? Result<void>(*first) : Result<void>();
}

Bytes PolicyRunner::wanted() const { return share_ ? std::min(*share_, ceiling_) : ceiling_; }

/// Gives the policy the target; what can be refused was checked before.
void PolicyRunner::apply_target() {
  const Bytes target = std::max(wanted(), settings_.minimum);
  if (target == ram_) {
    policy_.clear_target();
  } else if (policy_.target() != target) {
    (void)policy_.set_target(target).has_error();
  }
}

Result<void> PolicyRunner::set_ceiling(Bytes footprint) {
  footprint = footprint.page_floor();
  // Refused by a policy of its own, so that nothing has changed then.
  TargetPolicy trial(ram_);
  trial.set_minimum(settings_.minimum).value();
  if (const Result<void> good = trial.set_target(footprint); !good) {
    return good;
  }
  ceiling_ = footprint;
  apply_target();
  return {};
}

Result<void> PolicyRunner::set_minimum(Bytes minimum) {
  TargetPolicy trial(ram_);
  if (ceiling_ != ram_) {
    trial.set_target(ceiling_).value();
  }
  if (const Result<void> good = trial.set_minimum(minimum); !good) {
    return good;
  }
  settings_.minimum = minimum.page_floor();
  policy_.clear_target();  // it may lie between the old minimum and the new one
  (void)policy_.set_minimum(settings_.minimum).has_error();
  apply_target();
  return {};
}

Result<void> PolicyRunner::set_policy(std::optional<MemoryPolicy> policy,
                                      std::optional<std::chrono::milliseconds> timeout,
                                      std::optional<ActorName> actor) {
  const MemoryPolicy wanted_policy = policy.value_or(settings_.policy);
  const ActorName wanted_actor = actor.value_or(settings_.actor);
  const Result<MemoryPolicy> effective = effective_policy(wanted_policy, wanted_actor);
  if (!effective) {
    return effective.error();
  }
  if (timeout) {
    if (const Result<void> good = policy_.set_timeout(*timeout); !good) {
      return good;
    }
    settings_.timeout = *timeout;
  }
  settings_.policy = wanted_policy;
  settings_.actor = wanted_actor;
  policy_.set_policy(*effective);
  policy_.set_actor(wanted_actor);
  return {};
}

void PolicyRunner::set_share(Bytes target, bool may_force) {
  share_ = target.page_floor();
  may_force_ = may_force;
  apply_target();
}

void PolicyRunner::clear_share() {
  share_.reset();
  may_force_ = true;
  apply_target();
}

bool PolicyRunner::allows_paging() const {
  return policy_.policy() != MemoryPolicy::balloon_only &&
         settings_.actor.kind == ActorName::Kind::builtin;
}

bool PolicyRunner::can_page() const {
  return pager_ != nullptr && pager_->is_ready() && allows_paging();
}

/// What the balloon can still take, as long as it does take.
Bytes PolicyRunner::balloon_room(const Look& look, Clock::time_point now) {
  const Bytes resident = balloon_.withheld();
  if (resident >= grown_to_ + kGrowth) {
    grown_to_ = resident;
    grew_at_ = now;
  } else {
    grown_to_ = std::min(grown_to_, resident);
  }
  const bool grows = grew_at_ != Clock::time_point{} && now - grew_at_ < kGrowing;
  return grows ? look.guest_free - Bytes(ram_.count() / kReservePart) : Bytes(0);
}

void PolicyRunner::step(const Look& look, Clock::time_point now) {
  PolicyInput input;
  input.footprint = look.footprint;
  input.balloon_resident = balloon_.withheld();
  input.has_agent = balloon_.is_ready();
  input.balloon_room = balloon_room(look, now);
  const std::uint64_t evicted = std::exchange(evicted_, look.evicted_pages);
  input.taken = Bytes::pages(look.evicted_pages > evicted ? look.evicted_pages - evicted : 0);
  if (pager_ != nullptr) {
    input.paged = pager_->withheld();
    input.has_pager = pager_->is_ready();
    input.pager_problem = look.pager_problem;
  }
  // The operator's own target may always be forced; the arbiter says when its share may.
  input.may_force = may_force_ || ceiling_ <= wanted();
  input.is_room = wanted() < ceiling_;
  const PolicyOrder& order = policy_.step(input, now);
  tell();
  if (order.state == PolicyState::watching) {
    return;
  }
  balloon_.carry_out(order, look.footprint);
  if (pager_ != nullptr) {
    pager_->carry_out(order, look.footprint);
  }
}

/// An event for each change of state, limited like all that a guest can cause.
void PolicyRunner::tell() {
  const PolicyState state = order().state;
  if (state == told_ && (state == PolicyState::no_target || policy_.target() == told_target_)) {
    return;
  }
  told_ = state;
  told_target_ = policy_.target();
  const Severity severity = state == PolicyState::blocked ? Severity::warning : Severity::info;
  boost::json::object fields{{"state", to_string(state)}, {"reason", reason()}};
  if (told_target_) {
    fields["footprint_target_bytes"] = told_target_->count();
  }
  events_.publish_from_guest(severity, "policy-state", vm_,
                             std::string(to_string(state)) + ": " + reason(),
                             EventLog::Clock::now(), std::move(fields));
}

boost::json::object PolicyRunner::describe() const {
  const auto& target = policy_.target();
  return {{"policy", to_string(settings_.policy)},
          {"timeout_s", std::chrono::duration<double>(settings_.timeout).count()},
          {"actor", to_string(settings_.actor)},
          {"state", to_string(order().state)},
          {"reason", reason()},
          {"ceiling_bytes", ceiling_.count()},
          {"footprint_target_bytes",
           target ? boost::json::value(target->count()) : boost::json::value(nullptr)},
          {"minimum_bytes", settings_.minimum.count()},
          {"weight", settings_.weight},
          {"balloon_target_bytes", order().balloon_target.count()},
          {"paging_target_bytes", order().paging_target.count()}};
}

}  // namespace fileballoon::host
