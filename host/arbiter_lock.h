// ArbiterLock: one arbiter a host. Two would each divide the same memory, each seeing the other's
// guests as pressure. A lock on a file, which the kernel drops when its holder ends however it
// ends.
#pragma once

#include <string>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::host {

class ArbiterLock {
 public:
  /// Takes the lock. The error names the file and the process that has it.
  [[nodiscard]] static Result<ArbiterLock> take(const std::string& path);

 private:
  explicit ArbiterLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace fileballoon::host
