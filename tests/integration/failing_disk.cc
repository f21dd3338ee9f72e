#include "tests/integration/failing_disk.h"

#define FUSE_USE_VERSION 35
#include <fuse3/fuse.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "fileballoon/bytes.h"

namespace fileballoon::testing {
namespace {

constexpr auto kPage = static_cast<off_t>(kPageSize);
constexpr const char* kName = "/disk";

}  // namespace

struct FailingDisk::Operations {
  static FailingDisk& disk() {
    return *static_cast<FailingDisk*>(fuse_get_context()->private_data);
  }

  static int getattr(const char* path, struct stat* out, fuse_file_info*) {
    std::memset(out, 0, sizeof *out);
    if (std::strcmp(path, "/") == 0) {
      out->st_mode = S_IFDIR | 0700;
      out->st_nlink = 2;
      return 0;
    }
    if (std::strcmp(path, kName) != 0 || ::fstat(disk().content_.get(), out) != 0) {
      return -ENOENT;
    }
    out->st_mode = S_IFREG | 0600;
    return 0;
  }
  static int open(const char*, fuse_file_info* info) {
    info->direct_io = 1;  // every request arrives here
    return 0;
  }
  static int read(const char*, char* out, std::size_t size, off_t offset, fuse_file_info*) {
    const off_t bad = disk().bad_page_;
    if (bad >= 0 && offset < (bad + 1) * kPage && bad * kPage < offset + static_cast<off_t>(size)) {
      return -EIO;
    }
    const ssize_t got = ::pread(disk().content_.get(), out, size, offset);
    return got < 0 ? -errno : static_cast<int>(got);
  }
  static int write(const char*, const char* data, std::size_t size, off_t offset, fuse_file_info*) {
    if (disk().fail_writes_) {
      return -EIO;
    }
    const ssize_t wrote = ::pwrite(disk().content_.get(), data, size, offset);
    if (wrote <= 0) {
      return -errno;
    }
    disk().last_page_ = (offset + wrote) / kPage - 1;
    return static_cast<int>(wrote);
  }
  static int fsync(const char*, int, fuse_file_info*) { return 0; }
  static int statfs(const char*, struct statvfs* out) {
    std::memset(out, 0, sizeof *out);
    out->f_bsize = out->f_frsize = kPageSize;
    out->f_blocks = out->f_bfree = out->f_bavail = Bytes::gib(1).whole_pages();
    out->f_namemax = 255;
    return 0;
  }
};

bool FailingDisk::can_be_made() { return ::geteuid() == 0 && ::access("/dev/fuse", R_OK) == 0; }

FailingDisk::FailingDisk(std::string folder)
    : folder_(std::move(folder)), content_(::memfd_create("failing-disk", MFD_CLOEXEC)) {
  fuse_operations operations{};
  operations.getattr = Operations::getattr;
  operations.open = Operations::open;
  operations.read = Operations::read;
  operations.write = Operations::write;
  operations.fsync = Operations::fsync;
  operations.statfs = Operations::statfs;
  char name[] = "failing-disk";
  char* words[] = {name};
  fuse_args arguments = FUSE_ARGS_INIT(1, words);
  fuse_ = ::fuse_new(&arguments, &operations, sizeof operations, this);
  ::fuse_opt_free_args(&arguments);
  if (!content_.valid() || fuse_ == nullptr || ::fuse_mount(fuse_, folder_.c_str()) != 0) {
    throw std::runtime_error("cannot mount a disk that fails on " + folder_);
  }
  server_ = std::thread([fuse = fuse_] { (void)::fuse_loop(fuse); });
}

FailingDisk::~FailingDisk() {
  // Whoever still has the file open gets errors from here on; the loop ends with the mount.
  ::fuse_exit(fuse_);
  ::umount2(folder_.c_str(), MNT_FORCE | MNT_DETACH);
  server_.join();
  ::fuse_unmount(fuse_);
  ::fuse_destroy(fuse_);
}

}  // namespace fileballoon::testing
