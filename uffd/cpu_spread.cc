#include "uffd/cpu_spread.h"

#include <sched.h>

namespace fileballoon {

bool CpuSpread::is_taken(int cpu, std::size_t by_others_than) const {
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (i != by_others_than && members_[i].cpu.load(std::memory_order_relaxed) == cpu) {
      return true;
    }
  }
  return false;
}

void CpuSpread::look(std::size_t number, Clock::time_point now) {
  Member& self = members_[number];
  const int cpu = ::sched_getcpu();
  self.cpu.store(cpu, std::memory_order_relaxed);
  bool is_crowded = false;
  for (std::size_t i = 0; i < number; ++i) {
    is_crowded = is_crowded || members_[i].cpu.load(std::memory_order_relaxed) == cpu;
  }
  if (!is_crowded || now < self.moved + kRest) {
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
    if (!CPU_ISSET(other, &usable) || is_taken(other, number)) {
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
