// StoreFile: the file or block device that a file store writes to, opened and checked. Three kinds
// of path work: a directory (an unnamed temporary file in it, gone with the process), a file, and a
// block device. A file or device begins with a page that names its owner; one that belongs to
// another VM, is in use, or holds anything else is refused by name and never overwritten.
#pragma once

#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon {

struct StoreFileOptions {
  std::string path;
  Bytes limit;        ///< of content
  std::string owner;  ///< the VM's name, at most 255 bytes
};

class StoreFile {
 public:
  /// Content starts here; the owner's page lies before it.
  static constexpr Bytes kContentStart = Bytes(kPageSize);
  /// Space is taken from the file system in steps of this much, so that it fails at a known place
  /// and the content lies together.
  static constexpr Bytes kStep = Bytes::mib(16);

  /// Opens with O_DIRECT where the file system has it. Every error names the path, what is wrong
  /// (missing, no permission, not a directory, file or device, too small, in use, owned by another
  /// VM, holding something else) and the remedy.
  [[nodiscard]] static Result<StoreFile> open(const StoreFileOptions& options);

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// False where the file system refuses O_DIRECT: content then also passes the page cache.
  [[nodiscard]] bool is_direct() const { return direct_; }
  [[nodiscard]] Bytes limit() const { return limit_; }
  /// For messages.
  [[nodiscard]] const std::string& path() const { return path_; }

  /// Makes sure that the first `content` bytes of content have space. Returns 0 or an errno
  /// (ENOSPC, EFBIG, EDQUOT, EIO). Not thread-safe.
  [[nodiscard]] int reserve(Bytes content);
  /// Space taken so far.
  [[nodiscard]] Bytes reserved() const { return reserved_; }

 private:
  StoreFile(UniqueFd fd, std::string path, Bytes limit)
      : fd_(std::move(fd)), path_(std::move(path)), limit_(limit) {}

  UniqueFd fd_;
  std::string path_;
  Bytes limit_;
  Bytes reserved_;
  bool direct_ = true;
};

}  // namespace fileballoon
