// Inflater: the process that fills the balloon and empties it. One thread, one loop: it follows the
// limits, keeps the pipeline busy while the guest has memory to spare, tells the host, counts what
// reclaim took, and publishes what it knows. It is the only user of the balloon file; the file
// system that answers its reads is the other process, so neither can wait for itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fileballoon/growth.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/extent.h"
#include "guest-fs/host_link.h"
#include "guest-fs/locked_floor.h"
#include "guest-fs/pipeline.h"
#include "guest-fs/placer.h"
#include "guest-fs/reclaim/cold_cache_thread.h"
#include "guest-fs/reclaim/linux_cache_kernel.h"
#include "guest-fs/shared_block.h"

namespace fileballoon::guest {

struct InflaterConfig {
  std::string mount_point;
  ChannelAddress channel;
  Bytes ram;                           ///< bounds the limits that a host may set
  std::vector<FrameRange> ram_ranges;  ///< for HELLO
  CacheMode cache = CacheMode::off;    ///< until the host chooses another
  PageChoice pages = PageChoice::automatic;
};

class Inflater final : private HostLink::Handler {
 public:
  using Clock = std::chrono::steady_clock;

  /// `control_fd`: the supervisor's socket; a byte on it wakes the loop, its end stops it. `store`
  /// is handed to the fillers and closed here. Throws std::system_error or std::runtime_error
  /// saying what is missing.
  Inflater(InflaterConfig config, SharedBlock& shared, int control_fd);

  enum class End {
    stopped,      ///< the supervisor said so
    orphaned,     ///< the supervisor is gone
    file_failed,  ///< the file system does not answer any more
  };
  /// Runs until one of these.
  [[nodiscard]] End run();

 private:
  void on_session_start() override;
  void on_session_end() override;
  void on_limits(const wire::LimitsMessage& message) override;
  void on_ack(const wire::Ack& ack) override;
  void on_purge(const wire::Purge& purge) override;
  void on_cache(const wire::CacheOrder& order) override;

  /// One round of work; true where another round can go on at once.
  [[nodiscard]] bool step(Clock::time_point now);
  [[nodiscard]] bool follow_limits(const Limits& limits);
  [[nodiscard]] bool grow(const Limits& limits, Clock::time_point now);
  [[nodiscard]] bool tell();
  void place(Clock::time_point now);
  std::uint64_t drop_evictable(std::uint64_t pages);
  void look_around(Clock::time_point now, bool growing);
  void count_residency(Clock::time_point now);
  void refresh_memory(Clock::time_point now);
  [[nodiscard]] std::uint64_t resident_pages() const;
  [[nodiscard]] std::uint64_t missing_floor(const Limits& limits) const;
  void publish(Clock::time_point now);
  void send_stats(Clock::time_point now);
  void feed_cache(Clock::time_point now);
  void say_cache_note();
  [[nodiscard]] std::optional<End> read_control();
  [[nodiscard]] int wait_ms(Clock::time_point now) const;

  InflaterConfig config_;
  SharedBlock& shared_;
  int control_fd_;
  // Before the read-ahead process is started: LinuxCacheKernel moves this process to a memory
  // cgroup of its own, and a page stays charged to the cgroup it was made in.
  std::unique_ptr<LinuxCacheKernel> cache_kernel_;
  BalloonFile file_;
  Pipeline pipeline_;
  Placer placer_;
  UniqueFd epoll_;
  LockedFloor floor_;
  Growth growth_;
  HostLink link_;

  ExtentList evictable_;
  std::uint64_t evictable_pages_ = 0;  // believed resident; corrected by count_residency()
  FilePage next_evictable_{0};
  FilePage next_locked_ = kFirstLockedPage;
  std::vector<Extent> scratch_;

  AgentStats stats_;
  GrowthDecision decision_;
  Clock::time_point decided_at_{};
  bool file_failed_ = false;
  Clock::time_point quiet_until_{};  // after a failure of our own
  Clock::time_point next_count_{};
  Clock::time_point next_probe_{};
  Clock::time_point next_memory_{};
  Clock::time_point next_stats_{};
  Clock::time_point next_place_{};
  Clock::time_point next_tick_{};
  Bytes reserve_;
  wire::Stats last_sent_;

  Clock::time_point next_activity_{};
  std::uint64_t activity_ = 0;
  std::uint64_t busy_activity_ = 0;
  double busy_s_ = 0;
  std::string said_note_;
  UniqueFd cache_progress_;  // an eventfd: memory was freed, look again
  ColdCacheThread cache_;    // last: its thread uses what is above
};

}  // namespace fileballoon::guest
