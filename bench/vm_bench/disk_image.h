// DiskImage: a raw ext4 image with the staircase's two files, for the disk of a guest. Made once a
// run, mounted read-only by every guest, removed with this object.
#pragma once

#include <string>

#include "fileballoon/bytes.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::bench {

class StaircaseDisk {
 public:
  /// Throws std::runtime_error or std::system_error naming what is missing (mkfs.ext4, space).
  StaircaseDisk(Bytes hot, Bytes once);

  [[nodiscard]] std::string path() const { return dir_.file("disk.img"); }
  /// Names in the file system.
  static constexpr const char* kHot = "hot";
  static constexpr const char* kOnce = "once";

 private:
  vmkit::TempDir dir_;
};

}  // namespace fileballoon::bench
