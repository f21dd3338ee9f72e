#include "guest-fs/pin_pipe.h"

#include <fcntl.h>
#include <sys/uio.h>

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

std::array<UniqueFd, 2> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
    throw std::system_error(errno, std::generic_category(), "pipe2");
  }
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

PinPipe::PinPipe() {
  auto ends = make_pipe();
  read_end_ = std::move(ends[0]);
  write_end_ = std::move(ends[1]);
  constexpr int kPipeBytes = static_cast<int>(kCapacity * kPageSize);
  if (::fcntl(write_end_.get(), F_SETPIPE_SZ, kPipeBytes) < 0) {
    throw std::system_error(errno, std::generic_category(),
                            "pipe of 1 MiB (is /proc/sys/fs/pipe-max-size lower?)");
  }
  if (null_device() < 0) {
    throw std::system_error(ENOENT, std::generic_category(), "/dev/null");
  }
}

int PinPipe::pin(const void* address, std::uint64_t pages) {
  std::uint64_t done = 0;
  while (done < pages) {
    iovec vector{
        const_cast<char*>(static_cast<const char*>(address)) + done * kPageSize,
        (pages - done) * kPageSize,
    };
    const ssize_t bytes = ::vmsplice(write_end_.get(), &vector, 1, SPLICE_F_NONBLOCK);
    if (bytes > 0) {
      done += static_cast<std::uint64_t>(bytes) / kPageSize;
      pinned_ = done;
      continue;
    }
    if (bytes < 0 && errno == EINTR) {
      continue;
    }
    const int error = bytes < 0 ? errno : EFAULT;
    release();
    return error;
  }
  return 0;
}

int PinPipe::pin_file(int fd, std::uint64_t byte_offset, std::uint64_t pages) {
  while (pinned_ < pages) {
    auto offset = static_cast<off_t>(byte_offset + pinned_ * kPageSize);
    const ssize_t bytes = ::splice(fd, &offset, write_end_.get(), nullptr,
                                   (pages - pinned_) * kPageSize, SPLICE_F_NONBLOCK);
    if (bytes > 0) {
      pinned_ += static_cast<std::uint64_t>(bytes) / kPageSize;
      continue;
    }
    if (bytes < 0 && errno == EINTR) {
      continue;
    }
    const int error = bytes < 0 ? errno : EFAULT;
    release();
    return error;
  }
  return 0;
}

void PinPipe::release() {
  while (pinned_ > 0) {
    const ssize_t bytes = ::splice(read_end_.get(), nullptr, null_device(), nullptr,
                                   pinned_ * kPageSize, SPLICE_F_NONBLOCK);
    if (bytes <= 0) {
      if (bytes < 0 && errno == EINTR) {
        continue;
      }
      // A pipe that holds pages gives them; if not, only the end of the process lets go of them.
      std::abort();
    }
    const auto pages = static_cast<std::uint64_t>(bytes) / kPageSize;
    pinned_ -= pages < pinned_ ? pages : pinned_;
  }
}

}  // namespace fileballoon::guest
