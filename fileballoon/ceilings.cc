#include "fileballoon/ceilings.h"

#include <algorithm>
#include <numeric>

namespace fileballoon {

std::vector<Bytes> ceilings(std::span<const CeilingInput> vms, Bytes capacity) {
  std::vector<Bytes> result;
  Bytes held;       // in memory now
  Bytes committed;  // or promised
  for (const CeilingInput& vm : vms) {
    result.push_back(std::min(vm.ram, vm.footprint).page_floor());
    held += result.back();
    committed += std::max(result.back(), std::min(vm.target, vm.ram).page_floor());
  }
  // What is promised and not yet taken is kept for those it was promised to, as far as it is there.
  Bytes left = capacity - held;
  const Bytes promised = committed - held;
  for (std::size_t i = 0; i < vms.size(); ++i) {
    const Bytes wish = std::min(vms[i].target, vms[i].ram).page_floor() - result[i];
    if (promised <= capacity - held) {
      result[i] += wish;
      left = left - wish;
    } else if (promised.count() > 0) {
      const double part =
          static_cast<double>((capacity - held).count()) / static_cast<double>(promised.count());
      result[i] +=
          Bytes(static_cast<std::uint64_t>(static_cast<double>(wish.count()) * part)).page_floor();
    }
  }
  if (promised > capacity - held) {
    return result;
  }
  // The rest in equal parts; what one cannot use for want of RAM goes to the others.
  std::vector<std::size_t> order(vms.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return vms[a].ram - result[a] < vms[b].ram - result[b];
  });
  for (std::size_t i = 0; i < order.size(); ++i) {
    const Bytes room = vms[order[i]].ram.page_floor() - result[order[i]];
    const Bytes part = std::min(room, Bytes(left.count() / (order.size() - i)).page_floor());
    result[order[i]] += part;
    left = left - part;
  }
  return result;
}

std::vector<std::optional<Bytes>> next_ceilings(std::span<const CeilingState> vms, Bytes capacity) {
  std::vector<CeilingInput> held;
  for (const CeilingState& state : vms) {
    if (state.can_hold) {
      held.push_back(state.vm);
    } else {
      capacity = capacity - std::max(state.vm.footprint, std::min(state.vm.target, state.vm.ram));
    }
  }
  const std::vector<Bytes> wished = ceilings(held, capacity);
  // What each may come to before the orders below are confirmed, and what that leaves.
  Bytes possible;
  Bytes raises;
  std::size_t next = 0;
  for (const CeilingState& state : vms) {
    if (!state.can_hold) {
      continue;
    }
    const Bytes wish = wished[next++];
    // Without a ceiling in force one that is set now is the best there is.
    const Bytes now = std::max(state.in_force.value_or(wish), state.vm.footprint);
    possible += now;
    raises += wish - now;
  }
  const Bytes room = capacity - possible;
  const double part = raises <= room
                          ? 1.0
                          : static_cast<double>(room.count()) / static_cast<double>(raises.count());
  std::vector<std::optional<Bytes>> result;
  next = 0;
  for (const CeilingState& state : vms) {
    if (!state.can_hold) {
      result.emplace_back();
      continue;
    }
    const Bytes wish = wished[next++];
    const Bytes now = std::max(state.in_force.value_or(wish), state.vm.footprint);
    const Bytes raise(static_cast<std::uint64_t>(static_cast<double>((wish - now).count()) * part));
    result.emplace_back(wish <= now ? wish : now + raise.page_floor());
  }
  return result;
}

}  // namespace fileballoon
