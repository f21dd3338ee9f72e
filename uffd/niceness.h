// How much of a crowded CPU a thread gets beside what a guest runs.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

namespace fileballoon {

/// Of threads that discard: nobody waits for memory that a guest has given away, and on a host
/// whose CPUs are all busy it is a vCPU that would. Not lower, since a discard holds the lock of
/// its range for some 0.1 ms of CPU time, and a fault of a neighbour waits for it.
inline constexpr int kDiscardNiceness = 10;

/// Of the calling thread, and of those that it starts later. Lowering it needs CAP_SYS_NICE,
/// without which the thread stays as nice as it is.
inline void set_thread_niceness(int nice) {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), nice);
}

}  // namespace fileballoon
