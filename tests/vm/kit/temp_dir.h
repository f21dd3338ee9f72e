// TempDir: a private folder under /tmp that is removed with all it holds, also when a test throws.
#pragma once

#include <string>

namespace fileballoon::vmkit {

class TempDir {
 public:
  /// Creates /tmp/fileballoon-<purpose>.XXXXXX, mode 0700. Throws std::system_error.
  explicit TempDir(const std::string& purpose);
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace fileballoon::vmkit
