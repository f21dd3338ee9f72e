#include "guest-fs/frame_lookup.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace fileballoon::guest {
namespace {

constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
constexpr std::uint64_t kFrameMask = (std::uint64_t{1} << 55) - 1;

}  // namespace

Result<FrameLookup> FrameLookup::open() {
  UniqueFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return Error{std::string("cannot open /proc/self/pagemap: ") + std::strerror(errno) +
                 "; mount /proc and use a kernel with CONFIG_PROC_PAGE_MONITOR"};
  }
  FrameLookup lookup(std::move(fd));
  alignas(kPageSize) static volatile char probe[kPageSize];
  probe[0] = 1;  // a written page is present
  GuestFrame frame;
  const Look got = lookup.look(const_cast<const char*>(probe), std::span(&frame, 1));
  if (got != Look::all || frame.number() == 0) {
    return Error{
        "/proc/self/pagemap shows no frame numbers: balloonfs needs CAP_SYS_ADMIN in the initial "
        "user namespace (a container without it cannot run the balloon)"};
  }
  return lookup;
}

FrameLookup::Look FrameLookup::look(const void* address, std::span<GuestFrame> frames) {
  if (frames.size() > entries_.size()) {
    return Look::failed;
  }
  const std::size_t bytes = frames.size() * sizeof(std::uint64_t);
  const auto position = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(address) / kPageSize *
                                           sizeof(std::uint64_t));
  ssize_t got = -1;
  do {
    got = ::pread(fd_.get(), entries_.data(), bytes, position);
  } while (got < 0 && errno == EINTR);
  if (got != static_cast<ssize_t>(bytes)) {
    return Look::failed;
  }
  Look result = Look::all;
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const bool present = (entries_[i] & kPresent) != 0;
    if (!present) {
      result = Look::not_present;
    }
    // Without that bit the rest is a swap or migration entry, not a frame.
    frames[i] = GuestFrame(present ? entries_[i] & kFrameMask : 0);
  }
  return result;
}

}  // namespace fileballoon::guest
