#include "guest-fs/protect.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "fileballoon/unique_fd.h"
#include "guest-fs/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace fileballoon::guest {

void protect_process() {
  // One arena: every further one would be 64 MiB of address space and some pages of its own.
  ::mallopt(M_ARENA_MAX, 1);
  const UniqueFd score(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (!score.valid() || ::write(score.get(), "-1000", 5) != 5) {
    log_warning("cannot protect the agent from the OOM killer (oom_score_adj): " +
                std::string(std::strerror(errno)));
  }
  // Linux 5.6: allocations of this process neither start I/O nor wait for it to be throttled.
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) {
    log_info(std::string("PR_SET_IO_FLUSHER: ") + std::strerror(errno) +
             (errno == EINVAL ? " (Linux 5.6 has it)" : " (it needs CAP_SYS_RESOURCE)"));
  }
}

void lock_memory(bool future) {
  // On fault: a 1 MiB request buffer of which 200 bytes are ever used takes one page, not 256.
  if (::mlockall(MCL_CURRENT | MCL_ONFAULT | (future ? MCL_FUTURE : 0)) != 0) {
    log_warning("cannot lock the agent in memory (mlockall): " + std::string(std::strerror(errno)));
  }
}

}  // namespace fileballoon::guest
