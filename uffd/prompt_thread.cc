#include "uffd/prompt_thread.h"

#include <linux/sched/types.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace fileballoon {
namespace {

// The shortest that the kernel grants (sched_setattr(2), Linux 6.12). A thread that wakes with a
// shorter slice than the running one has takes its place before that is over (PREEMPT_SHORT in
// kernel/sched/features.h).
constexpr std::uint64_t kSliceNs = 100'000;

}  // namespace

void ask_for_prompt_wakeups() {
  sched_attr attributes{};
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) {
    return;
  }
  attributes.size = sizeof attributes;
  attributes.sched_runtime = kSliceNs;  // policy and niceness as they are
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace fileballoon
