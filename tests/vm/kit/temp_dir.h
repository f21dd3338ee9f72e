// TempDir: a private folder under /tmp that is removed with all it holds, also when a test throws,
// and by exit_cleanly_on_signals() when a person stops the program. What a killed process left is
// removed by the next one that makes a TempDir. Thread-safe.
#pragma once

#include <string>

namespace fileballoon::vmkit {

class TempDir {
 public:
  /// Creates /tmp/fileballoon-<purpose>.<pid>.XXXXXX, mode 0700. Throws std::system_error.
  explicit TempDir(const std::string& purpose);
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// From now on SIGINT, SIGTERM and SIGHUP remove all temporary folders and end the process with
/// status 128 + signal; children of the kit end with it. Call it first in main(), before there are
/// threads.
void exit_cleanly_on_signals();

}  // namespace fileballoon::vmkit
