#include "guest-fs/large_pages.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "fileballoon/bytes.h"
#include "guest-fs/erofs_image.h"
#include "guest-fs/guest_memory.h"

namespace fileballoon::guest {
namespace {

constexpr std::size_t kFolioBytes = kFolioPages * kPageSize;
/// Free blocks that are left to others: THP of applications, the kernel's own large buffers.
constexpr std::uint64_t kSpareFolios = 4;

Error failed(const std::string& what) { return Error{what + ": " + std::strerror(errno)}; }

int configure(int fs, unsigned command, const char* key, const char* value) {
  return static_cast<int>(::syscall(SYS_fsconfig, fs, command, key, value, 0));
}

}  // namespace

Result<UniqueFd> open_large_pages(int image_fd) {
  // fsopen(2) asks for the module where EROFS is one.
  const UniqueFd fs(static_cast<int>(::syscall(SYS_fsopen, "erofs", FSOPEN_CLOEXEC)));
  if (!fs.valid()) {
    return failed(errno == ENODEV ? "this kernel has no EROFS (CONFIG_EROFS_FS, module erofs)"
                                  : "fsopen erofs");
  }
  const std::string source = "/proc/self/fd/" + std::to_string(image_fd);
  if (configure(fs.get(), FSCONFIG_SET_STRING, "source", source.c_str()) != 0 ||
      configure(fs.get(), FSCONFIG_SET_FLAG, "ro", nullptr) != 0) {
    return failed("configure EROFS");
  }
  if (configure(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr) != 0) {
    return failed(errno == ENOTBLK ? "EROFS of this kernel mounts no files (Linux 6.12 does)"
                                   : "mount EROFS from a file");
  }
  const UniqueFd mount(static_cast<int>(
      ::syscall(SYS_fsmount, fs.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID)));
  if (!mount.valid()) {
    return failed("fsmount EROFS");
  }
  UniqueFd file(::openat(mount.get(), ErofsImage::kFileName, O_RDONLY | O_CLOEXEC));
  if (!file.valid()) {
    return failed("open the file of the EROFS image");
  }
  return file;
}

bool fill_folio(int file_fd, std::uint64_t byte_offset) {
  void* const at =
      ::mmap(nullptr, kFolioBytes, PROT_READ, MAP_SHARED, file_fd, static_cast<off_t>(byte_offset));
  if (at == MAP_FAILED) {
    return false;
  }
  // A fault in a mapping with MADV_HUGEPAGE reads ahead in folios of the size of a page middle
  // directory (do_sync_mmap_readahead(), Linux 5.18); MADV_RANDOM keeps it to one of them, and the
  // page from counting as used (vma_has_recency()). One byte of it is asked for.
  const bool ok = ::madvise(at, kFolioBytes, MADV_HUGEPAGE) == 0 &&
                  ::madvise(at, kFolioBytes, MADV_RANDOM) == 0 &&
                  ::madvise(at, kPageSize, MADV_POPULATE_READ) == 0;
  ::munmap(at, kFolioBytes);
  return ok;
}

bool has_free_folios() {
  return free_blocks(read_file("/proc/buddyinfo"), kFolioPages) > kSpareFolios;
}

}  // namespace fileballoon::guest
