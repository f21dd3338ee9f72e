// WaitChoice: how a reader best waits for its disk, found out by trying. Awake, it gives way and
// looks for the completion again and again, and so do the other readers, so that no CPU has to be
// woken, which in a virtual machine can take as long as half a read. Asleep, CPUs are left to who
// serves the disk, which in a virtual machine that shares its CPUs with its disk's emulation is
// worth more. Most reads wait in the way that was quicker lately, at first asleep; now and then
// some wait in the other. One thread at a time, but for awake().
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace fileballoon {

class WaitChoice {
 public:
  using Duration = std::chrono::nanoseconds;

  /// Reads between two trials, the length of a trial, and those at its beginning that do not count:
  /// the other readers follow with the next fault. The trial is 3 % of the reads.
  static constexpr std::uint32_t kPeriod = 1024;
  static constexpr std::uint32_t kTrial = 32;
  static constexpr std::uint32_t kSettling = 8;

  /// Whether the next read waits awake. Any thread.
  [[nodiscard]] bool awake() const { return awake_.load(std::memory_order_relaxed); }

  /// What the read that waited in the way of awake() took, from its submission on.
  void took(Duration time) {
    const bool is_awake = awake();
    const bool is_trial = is_awake != preferred_;
    if (in_row_++ >= kSettling) {
      mean_[is_awake ? 1 : 0].add(time);
    }
    if (in_row_ < (is_trial ? kTrial : kPeriod)) {
      return;
    }
    in_row_ = 0;
    if (is_trial) {
      // Another way has to be quicker by a twentieth: less is chance.
      const Duration now = mean_[preferred_ ? 1 : 0].value;
      const Duration tried = mean_[preferred_ ? 0 : 1].value;
      preferred_ = tried < now - now / 20 ? !preferred_ : preferred_;
      awake_.store(preferred_, std::memory_order_relaxed);
    } else {
      mean_[preferred_ ? 0 : 1] = {};
      awake_.store(!preferred_, std::memory_order_relaxed);
    }
  }

 private:
  // Of the first 16 reads, then moving; a read that took much longer than usual is another's doing.
  struct Mean {
    Duration value{};
    int reads = 0;
    void add(Duration time) {
      reads = std::min(reads + 1, 16);
      value += ((reads == 1 ? time : std::min(time, 2 * value)) - value) / reads;
    }
  };

  std::array<Mean, 2> mean_;                 // asleep, awake
  std::uint32_t in_row_ = kPeriod - kTrial;  // the first trial comes soon
  bool preferred_ = false;
  std::atomic<bool> awake_{false};
};

}  // namespace fileballoon
