#include "guest-fs/reclaim/cold_cache.h"

#include <algorithm>
#include <utility>

namespace fileballoon::guest {

std::string_view to_string(CacheState state) {
  switch (state) {
    case CacheState::off:
      return "off";
    case CacheState::not_possible:
      return "not possible";
    case CacheState::nothing_to_do:
      return "the balloon needs no more memory";
    case CacheState::memory_at_hand:
      return "there is free memory to grow into";
    case CacheState::waiting:
      return "waiting for cache to grow cold";
    case CacheState::evicting:
      return "evicting cold cache";
    case CacheState::refaulting:
      return "pausing, evicted cache was read again";
    case CacheState::stalling:
      return "pausing, tasks wait for memory";
  }
  return "unknown";
}

ColdCache::ColdCache(CacheKernel& kernel, CacheMode mode) : kernel_(kernel) { set_mode(mode); }

void ColdCache::set_mode(CacheMode mode) {
  mode_ = mode;
  choice_ = choose_method(mode, kernel_.features());
  lists_.clear();
  pace_ = CachePace();
  rest_ = 1;
  epoch_cache_ = 0;
  epoch_pages_left_ = 0;
  state_ = mode == CacheMode::off                  ? CacheState::off
           : choice_.method == ReclaimMethod::none ? CacheState::not_possible
                                                   : CacheState::waiting;
}

std::uint64_t ColdCache::count(const Taken& taken) {
  stats_.evicted_pages += taken.pages;
  return taken.pages;
}

ColdCacheStats ColdCache::stats() const {
  ColdCacheStats stats = stats_;
  stats.mode = mode_;
  stats.method = choice_.method;
  stats.note = choice_.note;
  stats.state = state_;
  stats.brakes = pace_.brakes();
  stats.epoch = epochs_.wanted();
  stats.epoch_turns = epochs_.turns();
  return stats;
}

ColdCache::Clock::time_point ColdCache::tick(const BalloonView& balloon, Clock::time_point now) {
  if (choice_.method == ReclaimMethod::none) {
    return Clock::time_point::max();
  }
  // Memory that nobody takes would only be cache lost.
  if (!balloon.connected || balloon.resident >= balloon.target) {
    state_ = CacheState::nothing_to_do;
    return Clock::time_point::max();
  }
  numbers_ = kernel_.numbers();
  look_for_release(now);
  if (mode_ == CacheMode::epoch) {
    return epoch(now);
  }
  const std::uint64_t ours = balloon.resident.whole_pages();
  const std::uint64_t cache = numbers_.file > ours ? numbers_.file - ours : 0;
  const bool tentative = fresh_left_ > 0 && !fresh_did_harm_;
  const std::uint64_t brakes = pace_.brakes();
  pace_.look({now, numbers_.refaulted, numbers_.stalled, cache, tentative});
  if (pace_.brakes() > brakes && pace_.state() == CachePace::State::refaulting) {
    if (fresh_did_harm_) {
      end_fresh();  // the kernel does not spare what is in use
    }
    fresh_did_harm_ = true;
  }
  if (pace_.allowance() == 0) {
    return brake();
  }
  return mode_ == CacheMode::proactive ? proactive(now) : unmapped_first(balloon, now);
}

void ColdCache::look_for_release(Clock::time_point now) {
  if (numbers_.anonymous + kReleased <= anonymous_) {
    pace_.forgive();
    stir();
    const bool new_one = now - released_at_ >= kOneRelease;
    if (new_one) {
      released_at_ = now;
      restart_wanted_ = true;
      fresh_left_ = 0;
    }
    fresh_left_ += kFreshShare * (anonymous_ - numbers_.anonymous);
    anonymous_ = numbers_.anonymous;
  }
  anonymous_ = std::max(anonymous_, numbers_.anonymous);
  if (restart_wanted_ && now >= next_restart_) {
    begin_anew(now);
  }
}

bool ColdCache::is_fresh(const ListState& state) const {
  return state.fresh_turns > 0 && fresh_left_ > 0 && mode_ != CacheMode::epoch;
}

void ColdCache::end_fresh() {
  fresh_left_ = 0;
  for (auto& [key, state] : lists_) {
    state.fresh_turns = 0;
  }
}

void ColdCache::begin_anew(Clock::time_point now) {
  restart_wanted_ = false;
  next_restart_ = now + kRestartEvery;
  fresh_did_harm_ = false;
  for (auto& [key, state] : lists_) {
    state.turn.restart();
    state.evicting = false;
    state.fresh_turns = kFreshTurns;
  }
}

ColdCache::Clock::time_point ColdCache::brake() {
  state_ =
      pace_.state() == CachePace::State::refaulting ? CacheState::refaulting : CacheState::stalling;
  return pace_.brake_end();
}

void ColdCache::rest_or_not(Clock::time_point now) {
  const std::uint64_t taken = stats_.evicted_pages - rest_evicted_;
  if (rest_since_ == Clock::time_point{} || taken >= kLeastPages) {
    rest_ = 1;
  } else if (now - rest_since_ < 4 * kPatience * rest_) {
    return;
  } else {
    rest_ = std::min(rest_ * 2, kMostRest);
  }
  rest_since_ = now;
  rest_evicted_ = stats_.evicted_pages;
}

ColdCache::Clock::time_point ColdCache::proactive(Clock::time_point now) {
  rest_or_not(now);
  const unsigned stretch = std::max(pace_.caution(), rest_);
  if (choice_.method == ReclaimMethod::generations) {
    const auto due = turn_lists(kPatience * stretch, pace_.allowance(), now);
    return restart_wanted_ ? std::min(due, next_restart_) : due;
  }
  // The kernel's lists tell no ages here; a slow pace must stand in for them.
  const std::uint64_t most = std::max(numbers_.file / kStepShare, CachePace::kFirstStep);
  state_ = step(std::min(pace_.allowance(), most)) > 0 ? CacheState::evicting : CacheState::waiting;
  return now + kStepTick * stretch;
}

std::uint64_t ColdCache::unmapped_pages(const BalloonView& balloon) const {
  const std::uint64_t not_ours = numbers_.mapped + numbers_.dirty + balloon.resident.whole_pages();
  return numbers_.file > not_ours ? numbers_.file - not_ours : 0;
}

ColdCache::Clock::time_point ColdCache::unmapped_first(const BalloonView& balloon,
                                                       Clock::time_point now) {
  if (balloon.free > balloon.reserve + kShort) {
    state_ = CacheState::memory_at_hand;
    return Clock::time_point::max();
  }
  const std::uint64_t unmapped = unmapped_pages(balloon);
  if (unmapped <= kLeastUnmapped) {
    state_ = CacheState::waiting;
    return now + kStepTick * rest_;
  }
  rest_or_not(now);
  const std::uint64_t most = std::min(pace_.allowance(), unmapped - kLeastUnmapped);
  if (choice_.method == ReclaimMethod::generations) {
    return turn_lists(kShortPatience * std::max(pace_.caution(), rest_), most, now);
  }
  state_ = step(most) > 0 ? CacheState::evicting : CacheState::waiting;
  return now + kWorkTick * rest_;
}

ColdCache::Clock::time_point ColdCache::epoch(Clock::time_point now) {
  const bool generations = choice_.method == ReclaimMethod::generations;
  if (epochs_.due(now)) {
    epochs_.begin(now);
    for (auto& [key, state] : lists_) {
      // A list that is not closed has seen no epoch begin: all in it may be new.
      state.pending = state.turn.is_closed();
    }
    epoch_pages_left_ = epoch_cache_ / 2;
    epoch_cache_ = numbers_.file;
  }
  Clock::time_point due = Clock::time_point::max();
  if (generations) {
    due = turn_lists(Clock::duration::max(), kEpochStep, now);
  } else {
    epoch_cache_ = epoch_cache_ == 0 ? numbers_.file : epoch_cache_;
    state_ = CacheState::waiting;
    if (epoch_pages_left_ > 0) {
      const std::uint64_t taken = step(std::min(epoch_pages_left_, kEpochStep));
      epoch_pages_left_ = taken == 0 ? 0 : epoch_pages_left_ - std::min(epoch_pages_left_, taken);
      state_ = CacheState::evicting;
      due = now + kEpochTick;
    }
  }
  const auto next = epochs_.next();
  return next ? std::min(due, std::max(*next, now)) : due;
}

ColdCache::Clock::time_point ColdCache::turn_lists(Clock::duration patience,
                                                   std::uint64_t allowance, Clock::time_point now) {
  state_ = CacheState::waiting;
  Clock::time_point due = Clock::time_point::max();
  std::map<ListKey, ListState> kept;
  for (const CacheList& list : kernel_.lists()) {
    auto found = lists_.extract({list.cgroup, list.node});
    ListState& state =
        found ? kept.insert(std::move(found)).position->second : kept[{list.cgroup, list.node}];
    if (list.view.file_pages < kLeastPages) {
      state = {};
      continue;
    }
    due = std::min(due, turn(list, state, patience, allowance, now));
  }
  lists_ = std::move(kept);  // cgroups that are gone are forgotten
  if (mode_ != CacheMode::epoch && due == Clock::time_point::max()) {
    due = now + kStepTick * rest_;  // nothing worth a turn: look again for lists that grow
  }
  return due;
}

ColdCache::Clock::time_point ColdCache::turn(const CacheList& list, ListState& state,
                                             Clock::duration patience, std::uint64_t& allowance,
                                             Clock::time_point now) {
  using Step = GenerationTurn::Step;
  const auto work_tick = mode_ == CacheMode::epoch ? kEpochTick : kWorkTick;
  GenerationView view = list.view;
  if (is_fresh(state)) {
    patience = std::min<Clock::duration>(patience, kFreshPatience);
  }
  // At most: done, two or three times age, and then a wait; or one eviction.
  for (int i = 0; i < 6; ++i) {
    const bool ordered = mode_ == CacheMode::epoch && state.pending;
    const auto decision =
        state.turn.decide(view, now, ordered ? Clock::duration::zero() : patience);
    switch (decision.step) {
      case Step::wait:
        return patience == Clock::duration::max() ? Clock::time_point::max() : decision.due;
      case Step::done:
        state.pending = false;
        state.evicting = false;
        state.fresh_turns -= state.fresh_turns > 0 ? 1 : 0;
        continue;
      case Step::age:
        if (kernel_.age(list, decision.generation) != 0) {
          return now + work_tick;  // somebody else aged it at this moment: look again
        }
        ++view.youngest;
        if (view.youngest - view.oldest >= GenerationTurn::kMostGenerations) {
          ++view.oldest;  // merged into the next
        }
        continue;
      case Step::evict:
        state_ = CacheState::evicting;
        if (!std::exchange(state.evicting, true)) {
          pace_.start_small();
          allowance = std::min(allowance, CachePace::kFirstStep);
          state.bite = 0;
          state.unmissed = false;
        }
        if (const auto next = next_bite(list, state, patience); now < next) {
          return std::min(next, now + kFreshTick);  // refaults may show at any moment
        } else if (next > state.bitten_at) {
          state.unmissed = true;  // who used these pages does so no more: nor the others
        }
        if (allowance > 0) {
          const std::uint64_t taken = count(kernel_.evict(list, decision.generation, allowance));
          state.in_use = list.evicted_in_use.value_or(0);
          state.bite = taken;
          state.bitten_at = now;
          state.brakes = pace_.brakes();
          if (is_fresh(state)) {
            fresh_left_ -= std::min(fresh_left_, taken);
            state.fresh_turns = fresh_left_ > 0 ? state.fresh_turns : 0;
          }
          state.turn.evicted(taken);
          pace_.evicted(taken);
          allowance -= std::min(allowance, taken);
        }
        return now + (is_fresh(state) && list.evicted_in_use ? kFreshTick : work_tick);
    }
  }
  return now + work_tick;
}

ColdCache::Clock::time_point ColdCache::next_bite(const CacheList& list, const ListState& state,
                                                  Clock::duration patience) const {
  const bool has_shown = pace_.brakes() != state.brakes;  // and the pace has braked for it
  if (state.bite == 0 || state.unmissed || !list.evicted_in_use || has_shown ||
      mode_ == CacheMode::epoch) {
    return state.bitten_at;
  }
  const std::uint64_t now = *list.evicted_in_use;
  const std::uint64_t in_use = now >= state.in_use ? now - state.in_use : now;
  return in_use * kInUseShare >= state.bite
             ? state.bitten_at + std::min<Clock::duration>(patience, kShowsWithin)
             : state.bitten_at;
}

std::uint64_t ColdCache::step(std::uint64_t pages) {
  const std::uint64_t taken = count(kernel_.step(pages));
  pace_.evicted(taken);
  return taken;
}

Bytes ColdCache::purge(Bytes amount) {
  const std::uint64_t wanted = amount.whole_pages();
  std::uint64_t gone = 0;
  const ReclaimFeatures& features = kernel_.features();
  if (features.balloon_cgroup_missing.empty() && features.generations_missing.empty()) {
    // As many rounds as there are generations: each makes one more of them evictable.
    for (std::uint64_t round = 0; round <= GenerationTurn::kMostGenerations && gone < wanted;
         ++round) {
      for (const CacheList& list : kernel_.lists()) {
        if (gone >= wanted || list.view.file_pages == 0) {
          continue;
        }
        std::uint64_t youngest = list.view.youngest;
        if (round > 0 && kernel_.age(list, youngest) == 0) {
          ++youngest;
        }
        if (youngest >= GenerationTurn::kLeastGenerations) {
          gone += count(
              kernel_.evict(list, youngest - GenerationTurn::kLeastGenerations, wanted - gone));
        }
      }
    }
    lists_.clear();
  }
  // What was in use at this very moment goes only by the kernel's own choice.
  while (gone < wanted && features.steps_missing.empty()) {
    const std::uint64_t taken = count(kernel_.step(wanted - gone));
    if (taken < kLeastPages) {
      gone += taken;
      break;
    }
    gone += taken;
  }
  stats_.purged_pages += gone;
  return Bytes::pages(gone);
}

}  // namespace fileballoon::guest
