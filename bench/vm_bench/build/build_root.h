// BuildRoot: the disk of the guest in the build scenario. A small Debian in a folder, made of what
// is installed on this machine (tcc, the C library and its headers, busybox) and of source archives
// (scripts/fetch-build-sources.sh); every guest gets an image of its own, since it writes to it.
#pragma once

#include <string>

#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::bench {

class BuildRoot {
 public:
  /// Throws std::runtime_error naming the package or the script that is missing.
  BuildRoot();

  /// Writes an ext4 image of it to `path`, with room to build in.
  void make_image(const std::string& path) const;
  /// What to run in the guest, with the image mounted at `mount_point`.
  [[nodiscard]] static std::string command(const std::string& mount_point);

 private:
  vmkit::TempDir dir_;
};

}  // namespace fileballoon::bench
