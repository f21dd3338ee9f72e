#include "guest-fs/pin_pipe.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace fileballoon::guest {
namespace {

int null_device() {
  static const UniqueFd fd(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  return fd.get();
}

}  // namespace

PinPipe::PinPipe(std::uint64_t pages) {
  for (std::uint64_t room = 0; room < pages; room += kPagesPerPipe) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
      throw std::system_error(errno, std::generic_category(), "pipe2");
    }
    Pipe& pipe = pipes_.emplace_back(Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])});
    if (::fcntl(pipe.write_end.get(), F_SETPIPE_SZ, static_cast<int>(kPagesPerPipe * kPageSize)) <
        0) {
      throw std::system_error(errno, std::generic_category(),
                              "pipe of 1 MiB (is /proc/sys/fs/pipe-max-size lower?)");
    }
  }
  if (null_device() < 0) {
    throw std::system_error(ENOENT, std::generic_category(), "/dev/null");
  }
}

std::uint64_t PinPipe::pinned() const {
  std::uint64_t sum = 0;
  for (const Pipe& pipe : pipes_) {
    sum += pipe.pinned;
  }
  return sum;
}

int PinPipe::pin(const void* address, std::uint64_t pages) {
  auto* const base = const_cast<char*>(static_cast<const char*>(address));
  const std::uint64_t before = pinned();
  for (Pipe& pipe : pipes_) {
    while (pipe.pinned < kPagesPerPipe) {
      const std::uint64_t done = pinned() - before;
      if (done >= pages) {
        return 0;
      }
      const std::uint64_t most = std::min(pages - done, kPagesPerPipe - pipe.pinned);
      const iovec vector{base + done * kPageSize, most * kPageSize};
      const ssize_t bytes = ::vmsplice(pipe.write_end.get(), &vector, 1, SPLICE_F_NONBLOCK);
      if (bytes > 0) {
        pipe.pinned += static_cast<std::uint64_t>(bytes) / kPageSize;
      } else if (bytes == 0 || errno != EINTR) {
        const int error = bytes < 0 ? errno : EFAULT;
        release();
        return error;
      }
    }
  }
  if (pinned() - before < pages) {
    release();
    return ENOSPC;
  }
  return 0;
}

void PinPipe::release() {
  for (Pipe& pipe : pipes_) {
    while (pipe.pinned > 0) {
      const ssize_t bytes = ::splice(pipe.read_end.get(), nullptr, null_device(), nullptr,
                                     pipe.pinned * kPageSize, SPLICE_F_NONBLOCK);
      if (bytes <= 0) {
        if (bytes < 0 && errno == EINTR) {
          continue;
        }
        // A pipe that holds pages gives them; if not, only the end of the process lets go of them.
        std::abort();
      }
      pipe.pinned -= std::min(pipe.pinned, static_cast<std::uint64_t>(bytes) / kPageSize);
    }
  }
}

}  // namespace fileballoon::guest
