// Footprint: host memory really behind a guest's RAM, read from the backing itself (allocated
// blocks of QEMU's memfd), never from anybody's counters. Deliberately not the daemon's own code:
// tests and benchmarks check the daemon with it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon::vmkit {

class Footprint {
 public:
  /// Finds the largest memfd among the descriptors of `pid`. Throws std::runtime_error.
  explicit Footprint(pid_t pid);
  /// Bytes allocated now; zero once the process is gone. Thread-safe.
  [[nodiscard]] Bytes now() const;
  /// The memfd in /proc, for whoever has to read or write the guest's RAM.
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Samples a footprint from a thread of its own, so that a peak of some milliseconds is seen.
class FootprintSampler {
 public:
  using Clock = std::chrono::steady_clock;
  struct Sample {
    Clock::time_point time;
    Bytes footprint;
  };

  explicit FootprintSampler(const Footprint& footprint,
                            std::chrono::milliseconds period = std::chrono::milliseconds(5));
  ~FootprintSampler();
  FootprintSampler(const FootprintSampler&) = delete;
  FootprintSampler& operator=(const FootprintSampler&) = delete;

  /// Ends the sampling; the samples in order of time, at least one.
  const std::vector<Sample>& stop();
  /// Largest of the samples; after stop().
  [[nodiscard]] Bytes peak() const;

 private:
  std::vector<Sample> samples_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace fileballoon::vmkit
