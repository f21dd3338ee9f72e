// This project: fileballoond attached to the guest's QEMU, balloonfs mounted in the guest.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "bench/vm_bench/mode.h"
#include "tests/vm/kit/agent.h"
#include "tests/vm/kit/daemon.h"

namespace fileballoon::bench {

class FileballoonMode final : public Mode {
 public:
  /// `refault`: as for `fileballoonctl attach --refault`.
  /// `cache`: mount option of that name; empty for the default.
  explicit FileballoonMode(std::string refault, std::string cache = {})
      : refault_(std::move(refault)), cache_(std::move(cache)) {}

  void start(vmkit::Vm& vm) override;
  [[nodiscard]] bool takes_target() const override { return true; }
  void request(Bytes size) override;
  /// Advances the epoch of a guest that ages by epochs.
  void steer() override;
  [[nodiscard]] Bytes inflated() override;
  [[nodiscard]] std::uint64_t yielded_pages() override;
  [[nodiscard]] std::uint64_t reclaimed_pages() override;
  [[nodiscard]] bool yields_by_reclaim() const override { return true; }
  [[nodiscard]] double helper_cpu_seconds() const override;
  [[nodiscard]] double helper_rss_mib() const override;

 private:
  std::string refault_;
  std::string cache_;
  std::chrono::steady_clock::time_point next_epoch_{};
  std::vector<pid_t> keepers_;
  std::unique_ptr<vmkit::Daemon> daemon_;
  std::unique_ptr<vmkit::Agent> agent_;
};

}  // namespace fileballoon::bench
