#include "uffd/userfaultfd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace fileballoon {
namespace {

// UFFDIO_POISON came with 6.6, after Debian 12's headers.
struct PoisonArgs {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, PoisonArgs);
constexpr std::uint64_t kPoisonDontWake = 1;

uffdio_range kernel_range(AddressRange range) { return {range.start, range.size.count()}; }

UffdStatus status_of(int error) {
  switch (error) {
    case 0:
      return UffdStatus::done;
    case EEXIST:
      return UffdStatus::exists;
    case EAGAIN:
      return UffdStatus::again;
    case ENOENT:
      return UffdStatus::missing;
    case ESRCH:
      return UffdStatus::exited;
    case ENOMEM:
    case ENOSPC:
      return UffdStatus::no_memory;
    case EFAULT:
    case EHWPOISON:
      return UffdStatus::poisoned;
    default:
      return UffdStatus::invalid;
  }
}

// ZEROPAGE, COPY, CONTINUE and POISON report in a field: bytes done, or -errno when none were. A
// partial completion makes the ioctl fail with EAGAIN, whatever stopped it; doing the rest again
// then tells the reason (fs/userfaultfd.c).
UffdOutcome filled(int result, std::int64_t field, Bytes wanted) {
  if (result == 0) {
    return {UffdStatus::done, wanted, 0};
  }
  const int error = errno;
  if (field > 0) {
    return {UffdStatus::again, Bytes(static_cast<std::uint64_t>(field)), error};
  }
  return {status_of(error), Bytes(), error};
}

UffdOutcome whole(int result, Bytes wanted) {
  if (result == 0) {
    return {UffdStatus::done, wanted, 0};
  }
  const int error = errno;
  return {status_of(error), Bytes(), error};
}

UniqueFd open_own(std::string& why) {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  // The device's permissions decide alone; the system call also asks for CAP_SYS_PTRACE or the
  // sysctl (userfaultfd(2), "Access to kernel faults").
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device.valid()) {
    UniqueFd fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags));
    if (fd.valid()) {
      return fd;
    }
  }
  why = std::string("/dev/userfaultfd: ") + std::strerror(errno);
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (!fd.valid()) {
    why += std::string(", userfaultfd(2): ") + std::strerror(errno);
  }
  return fd;
}

Result<UffdFeatures> api(int fd, UffdFeatures features) {
  uffdio_api args{};
  args.api = UFFD_API;
  args.features = features.bits();
  if (::ioctl(fd, UFFDIO_API, &args) != 0) {
    const int error = errno;
    const std::string reason = error == ENOTTY ? "it is not a userfaultfd"
                               : error == EINVAL
                                   ? "it was negotiated before, or the kernel lacks a feature"
                                   : std::string(std::strerror(error));
    return Error{"UFFDIO_API (" + to_string(features) + ") failed: " + reason};
  }
  return UffdFeatures(args.features);
}

}  // namespace

std::string to_string(UffdFeatures features) {
  static constexpr std::array<const char*, 17> kNames = {"pagefault_wp",
                                                         "event_fork",
                                                         "event_remap",
                                                         "event_remove",
                                                         "missing_hugetlbfs",
                                                         "missing_shmem",
                                                         "event_unmap",
                                                         "sigbus",
                                                         "thread_id",
                                                         "minor_hugetlbfs",
                                                         "minor_shmem",
                                                         "exact_address",
                                                         "wp_hugetlbfs_shmem",
                                                         "wp_unpopulated",
                                                         "poison",
                                                         "wp_async",
                                                         "move"};
  std::string text;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((features.bits() >> bit & 1) == 0) {
      continue;
    }
    text += (text.empty() ? "" : ", ") +
            (bit < kNames.size() ? std::string(kNames[bit]) : "bit " + std::to_string(bit));
  }
  return text.empty() ? "none" : text;
}

const char* to_string(UffdStatus status) {
  switch (status) {
    case UffdStatus::done:
      return "done";
    case UffdStatus::exists:
      return "exists";
    case UffdStatus::again:
      return "again";
    case UffdStatus::missing:
      return "missing";
    case UffdStatus::exited:
      return "exited";
    case UffdStatus::no_memory:
      return "no memory";
    case UffdStatus::poisoned:
      return "poisoned";
    case UffdStatus::invalid:
      return "invalid";
  }
  return "?";
}

Result<UffdFeatures> Userfaultfd::kernel_features() {
  std::string why;
  const UniqueFd fd = open_own(why);
  if (!fd.valid()) {
    return Error{"cannot ask the kernel for userfaultfd features: " + why};
  }
  return api(fd.get(), {});
}

Result<Userfaultfd> Userfaultfd::open(UffdFeatures required, UffdFeatures wanted) {
  std::string why;
  UniqueFd fd = open_own(why);
  if (!fd.valid()) {
    return Error{"userfaultfd is not allowed here (" + why +
                 "): run as root, give this user access to /dev/userfaultfd, or set "
                 "vm.unprivileged_userfaultfd=1; a kernel without CONFIG_USERFAULTFD has none"};
  }
  return negotiate(std::move(fd), required, wanted);
}

Result<Userfaultfd> Userfaultfd::negotiate(UniqueFd fd, UffdFeatures required,
                                           UffdFeatures wanted) {
  // A descriptor negotiates once, and asking for an unknown bit fails without saying which: so the
  // kernel is asked first, with a descriptor of our own.
  const auto offered = kernel_features();
  if (offered.has_error()) {
    return offered.error();
  }
  if (const UffdFeatures lacking = required.without(*offered); lacking != UffdFeatures()) {
    return Error{"this kernel's userfaultfd lacks " + to_string(lacking) + " (it has " +
                 to_string(*offered) + ")"};
  }
  const UffdFeatures take = required | (wanted & *offered);
  if (const auto answer = api(fd.get(), take); answer.has_error()) {
    return answer.error();
  }
  return Userfaultfd(std::move(fd), take);
}

Result<Userfaultfd> Userfaultfd::adopt(UniqueFd fd, UffdFeatures features) {
  std::array<char, 64> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd.get());
  if (::readlink(link.c_str(), target.data(), target.size() - 1) < 0 ||
      std::string_view(target.data()).find("[userfaultfd]") == std::string_view::npos) {
    return Error{"the descriptor is not a userfaultfd (it is " + std::string(target.data()) + ")"};
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return Error{std::string("cannot make the userfaultfd non-blocking: ") + std::strerror(errno)};
  }
  return Userfaultfd(std::move(fd), features);
}

Result<void> Userfaultfd::watch(AddressRange range, UffdMode mode) const {
  uffdio_register args{};
  args.range = kernel_range(range);
  args.mode = static_cast<std::uint64_t>(mode);
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &args) == 0) {
    return {};
  }
  const int error = errno;
  char where[96];
  std::snprintf(where, sizeof where, "0x%llx, %s, mode %llu",
                static_cast<unsigned long long>(range.start), to_string(range.size).c_str(),
                static_cast<unsigned long long>(mode));
  std::string reason = std::strerror(error);
  if (error == EBUSY) {
    reason = "another userfaultfd watches it already";
  } else if (error == EINVAL || error == ENOENT) {
    reason = "not a mapping that userfaultfd can watch (unmapped, unaligned, or of a wrong kind)";
  } else if (error == EPERM) {
    reason = "the mapping is not writable by the process (a sealed or read-only file)";
  } else if (error == ESRCH) {
    reason = "the process has exited";
  }
  return Error{std::string("UFFDIO_REGISTER (") + where + "): " + reason};
}

void Userfaultfd::unwatch(AddressRange range) const {
  uffdio_range args = kernel_range(range);
  (void)::ioctl(fd_.get(), UFFDIO_UNREGISTER, &args);
}

UffdOutcome Userfaultfd::zeropage(AddressRange range, Wake wake) const {
  uffdio_zeropage args{};
  args.range = kernel_range(range);
  args.mode = wake == Wake::yes ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
  const int result = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &args);
  return filled(result, args.zeropage, range.size);
}

UffdOutcome Userfaultfd::copy(AddressRange range, const void* source, Wake wake,
                              bool write_protected) const {
  uffdio_copy args{};
  args.dst = range.start;
  args.src = reinterpret_cast<std::uintptr_t>(source);
  args.len = range.size.count();
  args.mode = (wake == Wake::yes ? 0 : UFFDIO_COPY_MODE_DONTWAKE) |
              (write_protected ? UFFDIO_COPY_MODE_WP : 0);
  const int result = ::ioctl(fd_.get(), UFFDIO_COPY, &args);
  return filled(result, args.copy, range.size);
}

UffdOutcome Userfaultfd::continue_(AddressRange range, Wake wake) const {
  uffdio_continue args{};
  args.range = kernel_range(range);
  args.mode = wake == Wake::yes ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE;
  const int result = ::ioctl(fd_.get(), UFFDIO_CONTINUE, &args);
  return filled(result, args.mapped, range.size);
}

UffdOutcome Userfaultfd::protect(AddressRange range) const {
  uffdio_writeprotect args{};
  args.range = kernel_range(range);
  args.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  return whole(::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &args), range.size);
}

UffdOutcome Userfaultfd::unprotect(AddressRange range, Wake wake) const {
  uffdio_writeprotect args{};
  args.range = kernel_range(range);
  args.mode = wake == Wake::yes ? 0 : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  return whole(::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &args), range.size);
}

UffdOutcome Userfaultfd::wake(AddressRange range) const {
  uffdio_range args = kernel_range(range);
  return whole(::ioctl(fd_.get(), UFFDIO_WAKE, &args), range.size);
}

UffdOutcome Userfaultfd::poison(AddressRange range, Wake wake) const {
  PoisonArgs args{};
  args.range = kernel_range(range);
  args.mode = wake == Wake::yes ? 0 : kPoisonDontWake;
  const int result = ::ioctl(fd_.get(), kPoison, &args);
  return filled(result, args.updated, range.size);
}

UffdOutcome Userfaultfd::poison_marked(AddressRange range, Wake wake) const {
  (void)unprotect(range, Wake::no);
  return poison(range, wake);
}

UffdRead Userfaultfd::read(std::span<uffd_msg> buffer, std::size_t& count) const {
  count = 0;
  const ssize_t got = ::read(fd_.get(), buffer.data(), buffer.size_bytes());
  if (got > 0) {
    count = static_cast<std::size_t>(got) / sizeof(uffd_msg);
    return UffdRead::messages;
  }
  return got < 0 && (errno == EAGAIN || errno == EINTR) ? UffdRead::empty : UffdRead::closed;
}

}  // namespace fileballoon
