#include "uffd/pager/pagemap.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace fileballoon {
namespace {

// Debian 12's headers end before 6.7; from include/uapi/linux/fs.h.
struct PageRegion {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t categories = 0;
};
struct ScanArguments {
  std::uint64_t size = sizeof(ScanArguments);
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t walk_end = 0;
  std::uint64_t vec = 0;
  std::uint64_t vec_len = 0;
  std::uint64_t max_pages = 0;
  std::uint64_t category_inverted = 0;
  std::uint64_t category_mask = 0;
  std::uint64_t category_anyof_mask = 0;
  std::uint64_t return_mask = 0;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
constexpr std::uint64_t kIsWritten = 1U << 1;  // not write-protected by a userfaultfd
constexpr std::uint64_t kIsPresent = 1U << 3;

// Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
constexpr std::uint64_t kPresentBit = 1ULL << 63;
constexpr std::uint64_t kWriteProtectedBit = 1ULL << 57;

}  // namespace

Result<Pagemap> Pagemap::open(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return Error{path + ": " + std::strerror(errno) +
                 "; seeing which pages are in use needs the right to trace that process"};
  }
  return Pagemap(std::move(fd));
}

bool Pagemap::scan(AddressRange range, Want want, const std::function<void(AddressRange)>& visit) {
  if (!has_scan_) {
    return scan_by_reading(range, want, visit);
  }
  std::array<PageRegion, 512> regions;
  ScanArguments arguments;
  arguments.start = range.start;
  arguments.end = range.end();
  arguments.vec = reinterpret_cast<std::uintptr_t>(regions.data());
  arguments.vec_len = regions.size();
  arguments.category_mask = kIsPresent | (want == Want::writable ? kIsWritten : 0);
  arguments.return_mask = kIsPresent;
  while (arguments.start < arguments.end) {
    const int count = ::ioctl(fd_.get(), kPagemapScan, &arguments);
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      if (errno == ENOTTY && arguments.start == range.start) {
        has_scan_ = false;
        return scan_by_reading(range, want, visit);
      }
      return false;
    }
    for (int i = 0; i < count; ++i) {
      const PageRegion& region = regions[static_cast<std::size_t>(i)];
      visit({region.start, Bytes(region.end - region.start)});
    }
    if (arguments.walk_end <= arguments.start) {
      return false;
    }
    arguments.start = arguments.walk_end;
  }
  return true;
}

bool Pagemap::scan_by_reading(AddressRange range, Want want,
                              const std::function<void(AddressRange)>& visit) {
  buffer_.resize(4096);
  AddressRange run{range.start, Bytes(0)};
  for (std::uint64_t at = range.start; at < range.end();) {
    const std::uint64_t pages =
        std::min<std::uint64_t>(buffer_.size(), (range.end() - at) / kPageSize);
    const ssize_t got = ::pread(fd_.get(), buffer_.data(), pages * sizeof(buffer_[0]),
                                static_cast<off_t>(at / kPageSize * sizeof(buffer_[0])));
    if (got <= 0) {
      return false;
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(got) / sizeof(buffer_[0]); ++i) {
      const bool hit = (buffer_[i] & kPresentBit) != 0 &&
                       (want == Want::present || (buffer_[i] & kWriteProtectedBit) == 0);
      if (hit && run.end() == at) {
        run.size += Bytes(kPageSize);
      } else {
        if (run.size.count() > 0) {
          visit(run);
        }
        run = {at + (hit ? 0 : kPageSize), hit ? Bytes(kPageSize) : Bytes(0)};
      }
      at += kPageSize;
    }
  }
  if (run.size.count() > 0) {
    visit(run);
  }
  return true;
}

}  // namespace fileballoon
