#include "host/arbiter_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

namespace fileballoon::host {

Result<ArbiterLock> ArbiterLock::take(const std::string& path) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) {
    return Error{
        fmt::format("cannot open the arbiter's lock {}: {}; choose another with 'lock' in "
                    "[arbiter]",
                    path, std::strerror(errno))};
  }
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    std::array<char, 32> holder{};
    const ssize_t got = ::pread(fd.get(), holder.data(), holder.size() - 1, 0);
    return Error{fmt::format(
        "another arbiter divides this host's memory already (its lock {} is held by pid {}); two "
        "would fight: switch one of them off (mode = \"off\" in [arbiter])",
        path, got > 0 ? holder.data() : "unknown")};
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return Error{fmt::format("cannot write the arbiter's lock {}: {}", path, std::strerror(errno))};
  }
  return ArbiterLock(std::move(fd));
}

}  // namespace fileballoon::host
