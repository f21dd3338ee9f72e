#include "bench/vm_bench/disk_image.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "tests/vm/guest/pattern.h"
#include "tests/vm/guest/staircase.h"
#include "tests/vm/kit/child_process.h"

namespace fileballoon::bench {
namespace {

void write_pattern(const std::string& path, Bytes size, std::uint64_t seed) {
  std::ofstream file(path, std::ios::binary);
  std::vector<std::uint64_t> page(guest::kWordsPerPage);
  for (std::uint64_t number = 0; number < size.whole_pages(); ++number) {
    guest::fill_page(page.data(), seed, number);
    file.write(reinterpret_cast<const char*>(page.data()), guest::kPage);
  }
  file.close();
  if (!file) throw std::system_error(errno, std::generic_category(), "write " + path);
}

}  // namespace

StaircaseDisk::StaircaseDisk(Bytes hot, Bytes once) : dir_("bench-disk") {
  const std::filesystem::path content = dir_.file("content");
  std::filesystem::create_directory(content);
  write_pattern(content / kHot, hot, guest::kHotSeed);
  write_pattern(content / kOnce, once, guest::kOnceSeed);
  const Bytes size = hot + once + Bytes::mib(128);
  const auto done = vmkit::run_command(
      {"mkfs.ext4", "-q", "-d", content.string(), path(), std::to_string(size.count() >> 20) + "M"},
      std::chrono::seconds(120));
  if (done.status != 0) throw std::runtime_error("mkfs.ext4 (package e2fsprogs): " + done.err);
  std::filesystem::remove_all(content);
}

}  // namespace fileballoon::bench
