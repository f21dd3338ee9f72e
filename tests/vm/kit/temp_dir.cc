#include "tests/vm/kit/temp_dir.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

namespace fileballoon::vmkit {

// Not $TMPDIR: the sockets in here must fit the 107 characters of a UNIX address.
TempDir::TempDir(const std::string& purpose) : path_("/tmp/fileballoon-" + purpose + ".XXXXXX") {
  if (mkdtemp(path_.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp " + path_);
  }
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace fileballoon::vmkit
