#include "uffd/pager/store_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace fileballoon {
namespace {

// The first page of a named store. Content needs no index on disk: it is of use only to the process
// that wrote it, whose guest's memory ends with it.
struct OwnerPage {
  static constexpr std::array<char, 16> kMagic = {'f', 'i', 'l', 'e', 'b', 'a', 'l', 'l',
                                                  'o', 'o', 'n', 's', 't', 'o', 'r', 'e'};
  std::array<char, 16> magic{};
  std::uint32_t version = 1;
  std::array<char, 256> owner{};
  std::array<char, kPageSize - 16 - 4 - 256> reserved{};
};
static_assert(sizeof(OwnerPage) == kPageSize);

Error failure(const std::string& path, const std::string& what, int error) {
  return Error{"page store " + path + ": " + what + ": " + std::strerror(error)};
}

Error refusal(const std::string& path, const std::string& why) {
  return Error{"page store " + path + ": " + why};
}

// Buffered; the store itself reopens or sets O_DIRECT later.
Result<UniqueFd> open_path(const std::string& path, bool is_directory) {
  const int flags = O_RDWR | O_CLOEXEC | (is_directory ? O_TMPFILE : 0);
  UniqueFd fd(::open(path.c_str(), flags, 0600));
  if (!fd.valid() && is_directory && (errno == EOPNOTSUPP || errno == EISDIR)) {
    return refusal(path, "this file system has no O_TMPFILE; name a file in it instead");
  }
  if (!fd.valid()) {
    return failure(path, "cannot open it for reading and writing", errno);
  }
  return fd;
}

// A device is refused unless its beginning is blank: that is where file systems, partition tables,
// LVM and swap have their marks (btrfs the farthest, at 64 KiB).
Result<bool> is_blank(int fd, const std::string& path) {
  constexpr std::size_t kLooked = std::size_t{128} << 10;
  std::vector<char> start(kLooked);
  const ssize_t got = ::pread(fd, start.data(), start.size(), 0);
  if (got < 0) {
    return failure(path, "cannot read its beginning", errno);
  }
  return std::all_of(start.begin(), start.begin() + got, [](char c) { return c == 0; });
}

Result<bool> claim(int fd, const StoreFileOptions& options) {
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return refusal(options.path, "in use by another process; give each VM a store file of its own");
  }
  OwnerPage page;
  const ssize_t got = ::pread(fd, &page, sizeof(page), 0);
  if (got < 0) {
    return failure(options.path, "cannot read its owner page", errno);
  }
  const bool ours = got == sizeof(page) && page.magic == OwnerPage::kMagic;
  if (ours) {
    page.owner.back() = 0;
    if (page.version != 1) {
      return refusal(options.path, "written by another version (" + std::to_string(page.version) +
                                       ") of fileballoon; remove it");
    }
    if (options.owner != page.owner.data()) {
      return refusal(options.path, "holds pages of VM '" + std::string(page.owner.data()) +
                                       "', not of '" + options.owner +
                                       "'; give another path, or remove it if that VM is gone");
    }
  } else {
    const auto blank = is_blank(fd, options.path);
    if (!blank) {
      return blank.error();
    }
    if (!*blank) {
      return refusal(options.path,
                     "holds something that is not a page store; give another path, or clear it "
                     "first if it is not needed");
    }
  }
  OwnerPage mine;
  mine.magic = OwnerPage::kMagic;
  std::copy(options.owner.begin(), options.owner.end(), mine.owner.begin());
  if (::pwrite(fd, &mine, sizeof(mine), 0) != static_cast<ssize_t>(sizeof(mine)) ||
      ::fdatasync(fd) != 0) {
    return failure(options.path, "cannot write its owner page", errno);
  }
  return true;
}

Result<Bytes> device_size(int fd, const std::string& path) {
  std::uint64_t size = 0;
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) {
    return failure(path, "cannot tell the size of the device", errno);
  }
  return Bytes(size);
}

// Room that a file on this file system can still have, blocks it has already included.
Result<Bytes> file_room(int fd, const std::string& path) {
  struct statvfs system {};
  struct stat file {};
  if (::fstatvfs(fd, &system) != 0 || ::fstat(fd, &file) != 0) {
    return failure(path, "cannot tell how much room there is", errno);
  }
  return Bytes(system.f_bavail * system.f_frsize +
               static_cast<std::uint64_t>(file.st_blocks) * 512);
}

}  // namespace

Result<StoreFile> StoreFile::open(const StoreFileOptions& options) {
  const std::string& path = options.path;
  if (options.owner.size() >= OwnerPage{}.owner.size()) {
    return refusal(path, "the VM's name is longer than 255 bytes");
  }
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    return Error{"page store " + path + ": " + std::strerror(errno) +
                 "; give a directory, an existing file or a block device"};
  }
  const bool is_directory = S_ISDIR(status.st_mode);
  const bool is_device = S_ISBLK(status.st_mode);
  if (!is_directory && !is_device && !S_ISREG(status.st_mode)) {
    return refusal(path, "neither a directory nor a file nor a block device");
  }
  auto fd = open_path(path, is_directory);
  if (!fd) {
    return fd.error();
  }
  if (!is_directory) {
    if (const auto claimed = claim(fd->get(), options); !claimed) {
      return claimed.error();
    }
  }
  const auto room = is_device ? device_size(fd->get(), path) : file_room(fd->get(), path);
  if (!room) {
    return room.error();
  }
  const Bytes needed = options.limit + kContentStart;
  if (*room < needed) {
    return refusal(path, "too small: " + to_string(*room) + " there, " + to_string(needed) +
                             " needed; lower the store's limit or give another path");
  }
  struct rlimit file_size {};
  if (!is_device && ::getrlimit(RLIMIT_FSIZE, &file_size) == 0 &&
      file_size.rlim_cur < needed.count()) {
    // Writing past it would not only fail but kill the process by SIGXFSZ.
    return refusal(path, "too small: this process may write files of " +
                             to_string(Bytes(file_size.rlim_cur)) + " only (RLIMIT_FSIZE), " +
                             to_string(needed) + " needed; raise LimitFSIZE");
  }
  StoreFile file(std::move(*fd), path, options.limit.page_floor());
  const int flags = ::fcntl(file.fd(), F_GETFL);
  file.direct_ = flags >= 0 && ::fcntl(file.fd(), F_SETFL, flags | O_DIRECT) == 0;
  if (is_device) {
    file.reserved_ = file.limit_;
  }
  return file;
}

int StoreFile::reserve(Bytes content) {
  while (reserved_ < content) {
    const Bytes step = std::min(kStep, limit_ - reserved_);
    if (step.count() == 0) {
      return ENOSPC;
    }
    const auto at = static_cast<off_t>((kContentStart + reserved_).count());
    if (::fallocate(fd_.get(), 0, at, static_cast<off_t>(step.count())) != 0) {
      if (errno != EOPNOTSUPP) {
        return errno;
      }
      // No preallocation here: a full file system shows when a page is written.
    }
    reserved_ += step;
  }
  return 0;
}

}  // namespace fileballoon
