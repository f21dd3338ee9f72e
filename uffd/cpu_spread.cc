#include "uffd/cpu_spread.h"

#include <sched.h>

#include <algorithm>

namespace fileballoon {

bool CpuSpread::is_on(int cpu, std::size_t first_members) const {
  return std::any_of(
      members_.begin(), members_.begin() + static_cast<std::ptrdiff_t>(first_members),
      [&](const Member& member) { return member.cpu.load(std::memory_order_relaxed) == cpu; });
}

void CpuSpread::look(std::size_t number, Clock::time_point now) {
  Member& self = members_[number];
  const int cpu = ::sched_getcpu();
  self.cpu.store(cpu, std::memory_order_relaxed);
  if (!is_on(cpu, number) || now < self.moved + kRest) {
    return;
  }
  self.moved = now;
  // A machine with more CPUs than a cpu_set_t has bits: EINVAL, and nobody moves.
  cpu_set_t usable;
  if (::sched_getaffinity(0, sizeof usable, &usable) != 0) {
    return;
  }
  for (int step = 1; step < CPU_SETSIZE; ++step) {  // the nearest first: it shares most caches
    const int other = (cpu + step) % CPU_SETSIZE;
    if (!CPU_ISSET(other, &usable) || is_on(other, members_.size())) {
      continue;
    }
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(other, &only);
    if (::sched_setaffinity(0, sizeof only, &only) == 0) {
      self.cpu.store(other, std::memory_order_relaxed);
      moves_.fetch_add(1, std::memory_order_relaxed);
      (void)::sched_setaffinity(0, sizeof usable, &usable);
    }
    return;
  }
}

}  // namespace fileballoon
