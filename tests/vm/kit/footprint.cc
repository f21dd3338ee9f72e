#include "tests/vm/kit/footprint.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

namespace fileballoon::vmkit {
namespace fs = std::filesystem;

Footprint::Footprint(pid_t pid) {
  const std::string dir = "/proc/" + std::to_string(pid) + "/fd";
  off_t largest = 0;
  for (const auto& entry : fs::directory_iterator(dir)) {
    std::error_code gone;
    const std::string target = fs::read_symlink(entry.path(), gone).string();
    struct stat status {};
    if (gone || !target.starts_with("/memfd:") || stat(entry.path().c_str(), &status) != 0) {
      continue;
    }
    if (status.st_size > largest) {
      largest = status.st_size;
      path_ = entry.path();
    }
  }
  if (path_.empty()) throw std::runtime_error("process " + std::to_string(pid) + " has no memfd");
}

Bytes Footprint::now() const {
  struct stat status {};
  if (stat(path_.c_str(), &status) != 0) return Bytes(0);
  return Bytes(static_cast<std::uint64_t>(status.st_blocks) * 512);
}

FootprintSampler::FootprintSampler(const Footprint& footprint, std::chrono::milliseconds period) {
  samples_.push_back({Clock::now(), footprint.now()});
  thread_ = std::thread([this, &footprint, period] {
    while (!stopping_.load(std::memory_order_relaxed)) {
      std::this_thread::sleep_for(period);
      samples_.push_back({Clock::now(), footprint.now()});
    }
  });
}

FootprintSampler::~FootprintSampler() { stop(); }

const std::vector<FootprintSampler::Sample>& FootprintSampler::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  if (thread_.joinable()) thread_.join();
  return samples_;
}

Bytes FootprintSampler::peak() const {
  return std::max_element(
             samples_.begin(), samples_.end(),
             [](const Sample& a, const Sample& b) { return a.footprint < b.footprint; })
      ->footprint;
}

}  // namespace fileballoon::vmkit
