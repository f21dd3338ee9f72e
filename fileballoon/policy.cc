#include "fileballoon/policy.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "fileballoon/elapsed.h"

namespace fileballoon {
namespace {

bool has_balloon(MemoryPolicy p) { return p != MemoryPolicy::page_only; }
bool has_paging(MemoryPolicy p) { return p != MemoryPolicy::balloon_only; }
bool balloon_first(MemoryPolicy p) {
  return p == MemoryPolicy::balloon_then_page || p == MemoryPolicy::balloon_only;
}

std::string seconds(TargetPolicy::Duration time) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f s", std::chrono::duration<double>(time).count());
  return text.data();
}

}  // namespace

Result<void> TargetPolicy::set_target(Bytes footprint) {
  footprint = footprint.page_floor();
  if (footprint > ram_) {
    return Error{"target " + to_string(footprint) + " is above the guest's RAM of " +
                 to_string(ram_) + "; choose a target of at most that"};
  }
  if (footprint < minimum_) {
    return Error{"target " + to_string(footprint) + " is below the VM's minimum of " +
                 to_string(minimum_) + "; choose at least that, or lower the minimum first"};
  }
  if (!target_ || footprint < *target_) {
    start_waiting();  // a lower target is a new task; a higher one asks nobody to hurry
  }
  target_ = footprint;
  return {};
}

void TargetPolicy::clear_target() { target_.reset(); }

Result<void> TargetPolicy::set_minimum(Bytes minimum) {
  minimum = minimum.page_floor();
  if (minimum > ram_) {
    return Error{"minimum " + to_string(minimum) + " is above the guest's RAM of " +
                 to_string(ram_) + "; choose at most that"};
  }
  if (target_ && minimum > *target_) {
    return Error{"minimum " + to_string(minimum) + " is above the VM's target of " +
                 to_string(*target_) + "; raise the target first"};
  }
  minimum_ = minimum;
  return {};
}

Result<void> TargetPolicy::set_timeout(Duration timeout) {
  if (timeout <= Duration::zero() || timeout > kLongestTimeout) {
    return Error{"timeout " + seconds(timeout) +
                 " is out of range; choose more than 0 and at most " + seconds(kLongestTimeout)};
  }
  timeout_ = timeout;
  return {};
}

void TargetPolicy::set_policy(MemoryPolicy policy) {
  if (policy != policy_) {
    policy_ = policy;
    start_waiting();
  }
}

void TargetPolicy::set_actor(ActorName actor) {
  if (actor != actor_) {
    actor_ = std::move(actor);
    start_waiting();
  }
}

void TargetPolicy::start_waiting() {
  waited_ = {};
  postponed_ = 0;
}

/// Counts time in which the mechanisms could work: no jumps, in neither direction.
void TargetPolicy::pass_time(Clock::time_point now) {
  if (last_) {
    waited_ = std::min(waited_ + elapsed(*last_, now, kLongestStep), Duration(kLongestTimeout));
  }
  last_ = now;
}

Bytes TargetPolicy::tolerance() const {
  return std::max(kLeastTolerance, Bytes(ram_.count() / kTolerancePart).page_floor());
}

TargetPolicy::Duration TargetPolicy::left() const {
  return std::max(Duration::zero(), timeout_ - waited_);
}

const PolicyOrder& TargetPolicy::step(const PolicyInput& input, Clock::time_point now) {
  pass_time(now);
  PolicyOrder next = decide(input);
  next.is_changed = next.state != order_.state || next.balloon_target != order_.balloon_target ||
                    next.paging_target != order_.paging_target;
  order_ = next;
  return order_;
}

PolicyOrder TargetPolicy::decide(const PolicyInput& input) {
  if (actor_.kind == ActorName::Kind::external) {
    reason_ = "left to " + actor_.name;
    if (target_) {
      reason_ += input.footprint > *target_ + tolerance()
                     ? ", which is " + to_string(input.footprint - *target_) + " above the target"
                     : ", at target";
    }
    return {PolicyState::watching, input.balloon_resident, input.paged, false};
  }
  if (!target_) {
    start_waiting();
    reason_ = input.paged > Bytes(0) ? "no target: paging " + to_string(input.paged) + " back in"
                                     : "no target: the guest keeps what it uses";
    return {PolicyState::no_target, Bytes(0), Bytes(0), false};
  }
  if (input.footprint > *target_ + tolerance()) {
    return lower(input, input.footprint - *target_);
  }
  start_waiting();  // reached: the next rise is a new task for the primary mechanism
  return give_back(input, *target_ - input.footprint);
}

/// The footprint is `missing` above the target.
PolicyOrder TargetPolicy::lower(const PolicyInput& input, Bytes missing) {
  const bool can_balloon = has_balloon(policy_) && input.has_agent;
  const bool can_page = has_paging(policy_) && input.has_pager && input.may_force;
  const Bytes all = ram_ - *target_;
  const bool is_paging = order_.state == PolicyState::secondary_working;
  const bool page_now = !balloon_first(policy_);  // paging is the primary mechanism
  if (input.taken >= kTaken && balloon_first(policy_) && waited_ >= timeout_ &&
      postponed_ < kMostPostponements) {
    // The guest's needs changed: force gives way, and will gets another chance.
    ++postponed_;
    waited_ = {};
  }
  const bool is_over = left() == Duration::zero();

  PolicyOrder order;
  // The balloon's target is an upper limit, and what is in it is cheaper than what is paged: as a
  // primary mechanism, it may always hold everything.
  order.balloon_target = balloon_first(policy_) ? all : input.balloon_resident;
  order.paging_target = has_paging(policy_) ? input.paged : Bytes(0);
  const std::string gap = to_string(missing);
  // Page-out that has stopped is still asked for, so that it goes on as soon as it can.
  const bool is_stuck = can_page && !input.pager_problem.empty();

  if (page_now) {
    order.paging_target = can_page ? std::min(all, input.paged + missing) : input.paged;
    const bool second = policy_ == MemoryPolicy::page_then_balloon && is_over;
    if (second) {
      order.balloon_target = std::min(all, input.balloon_resident + missing);
    } else if (policy_ == MemoryPolicy::page_only) {
      order.balloon_target = Bytes(0);
    }
    if (second && can_balloon) {
      order.state = PolicyState::secondary_working;
      reason_ = "balloon takes " + gap + " that paging did not";
    } else if (is_stuck && (second || policy_ == MemoryPolicy::page_only)) {
      order.state = PolicyState::blocked;
      reason_ = gap + " above target: page-out stopped: " + input.pager_problem;
    } else if (can_page) {
      order.state = PolicyState::primary_working;
      reason_ = policy_ == MemoryPolicy::page_only
                    ? "paging out " + gap
                    : "waiting for paging, " + seconds(left()) + " left";
    } else {
      order.state = second || policy_ == MemoryPolicy::page_only ? PolicyState::blocked
                                                                 : PolicyState::primary_working;
      reason_ = gap + " above target: " +
                (!input.has_pager ? "this VM has no pager" : "paging is not allowed now");
      if (policy_ == MemoryPolicy::page_then_balloon) {
        reason_ +=
            second ? ", and its guest has no agent" : ", balloon starts in " + seconds(left());
      }
    }
    return order;
  }

  if (!is_over) {
    order.state = PolicyState::primary_working;
    // What force has taken it keeps, less what the guest has just shown that it needs.
    order.paging_target = is_paging ? order.paging_target - input.taken : order.paging_target;
    reason_ = std::string("waiting for ") +
              (input.has_agent ? "balloon" : "an agent in the guest") + ", " + seconds(left()) +
              " left";
    return order;
  }
  const Bytes by_will = std::min(missing, input.balloon_room);
  if (can_page && by_will == missing) {
    order.state = PolicyState::primary_working;
    reason_ = "the balloon still grows: " + gap + " missing, and the guest has that much free";
    return order;
  }
  if (can_page) {
    order.paging_target = std::min(all, input.paged + (missing - by_will));
    if (is_stuck) {
      order.state = PolicyState::blocked;
      reason_ = gap + " above target: the guest gives no more, and page-out stopped: " +
                input.pager_problem;
      return order;
    }
    order.state = PolicyState::secondary_working;
    reason_ = "paging out " + to_string(missing - by_will) + " that the balloon did not take";
    return order;
  }
  order.state = PolicyState::blocked;
  reason_ = gap + " above target: " +
            (input.has_agent ? "the guest gives no more" : "the guest has no agent");
  if (policy_ == MemoryPolicy::balloon_only) {
    reason_ += ", and the policy is balloon-only";
  } else {
    reason_ += input.has_pager ? ", and paging is not allowed now" : ", and this VM has no pager";
  }
  return order;
}

/// The footprint is at the target, or `surplus` below it.
PolicyOrder TargetPolicy::give_back(const PolicyInput& input, Bytes surplus) {
  const Bytes all = ram_ - *target_;
  PolicyOrder order;
  if (balloon_first(policy_)) {
    const bool has_room = input.is_room && surplus > Bytes(ram_.count() / kRoomPart);
    order.balloon_target = has_room ? std::min(all, input.balloon_resident) : all;
    order.paging_target = has_paging(policy_) ? input.paged - surplus : Bytes(0);
  } else if (policy_ == MemoryPolicy::page_then_balloon) {
    const Bytes from_balloon = std::min(surplus, input.balloon_resident);
    order.balloon_target = std::min(all, input.balloon_resident - from_balloon);
    order.paging_target = std::min(all, input.paged - (surplus - from_balloon));
  } else {
    order.balloon_target = Bytes(0);
    order.paging_target = std::min(all, input.paged - surplus);
  }
  const Bytes page_in = input.paged - order.paging_target;
  const Bytes deflate = input.balloon_resident - order.balloon_target;
  const bool is_reached =
      surplus <= tolerance() && page_in <= tolerance() && deflate <= tolerance();
  if (is_reached) {
    // A difference within the tolerance is not worth moving a page for.
    order.paging_target = has_paging(policy_) ? input.paged : order.paging_target;
  }
  if (is_reached || (page_in == Bytes(0) && deflate == Bytes(0))) {
    order.state = PolicyState::at_target;
    reason_ = surplus <= tolerance() ? "at target"
                                     : "below target: the guest does not use all that it may";
    return order;
  }
  order.state = PolicyState::giving_back;
  reason_ = "giving back";
  if (page_in > Bytes(0)) {
    reason_ += " " + to_string(page_in) + " from paging";
  }
  if (deflate > Bytes(0)) {
    reason_ += std::string(page_in > Bytes(0) ? " and" : "") + " " + to_string(deflate) +
               " from the balloon";
  }
  return order;
}

std::string_view to_string(PolicyState state) {
  switch (state) {
    case PolicyState::no_target:
      return "no-target";
    case PolicyState::at_target:
      return "at-target";
    case PolicyState::giving_back:
      return "giving-back";
    case PolicyState::primary_working:
      return "primary-working";
    case PolicyState::secondary_working:
      return "secondary-working";
    case PolicyState::blocked:
      return "blocked";
    case PolicyState::watching:
      return "watching";
  }
  return "?";
}

}  // namespace fileballoon
