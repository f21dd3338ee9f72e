#include "uffd/pager/uring.h"

#include <cerrno>
#include <string>
#include <system_error>

namespace fileballoon {

Uring::Uring(unsigned entries) : entries_(entries) {
  // No interrupt to the CPU of the thread that waits: it enters the kernel soon by itself, be it to
  // wait or to give way (Linux 5.19, io_uring_setup(2)).
  int result = io_uring_queue_init(entries, &ring_, IORING_SETUP_COOP_TASKRUN);
  if (result == -EINVAL) {
    result = io_uring_queue_init(entries, &ring_, 0);
  }
  if (result < 0) {
    throw std::system_error(-result, std::generic_category(),
                            result == -EPERM
                                ? "io_uring_setup (is sysctl kernel.io_uring_disabled set?)"
                                : "io_uring_setup");
  }
}

}  // namespace fileballoon
