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

#include "fileballoon/exchange.h"
#include "fileballoon/give_way.h"
#include "fileballoon/growth.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/deflate_reports.h"
#include "guest-fs/extent.h"
#include "guest-fs/frame_book.h"
#include "guest-fs/guest_memory.h"
#include "guest-fs/host_link.h"
#include "guest-fs/locked_floor.h"
#include "guest-fs/moved_pages.h"
#include "guest-fs/pipeline.h"
#include "guest-fs/placer.h"
#include "guest-fs/reclaim/cold_cache_thread.h"
#include "guest-fs/reclaim/linux_cache_kernel.h"
#include "guest-fs/shared_block.h"
#include "guest-fs/told_deflation.h"

namespace fileballoon::guest {

struct InflaterConfig {
  std::string mount_point;
  ChannelAddress channel;
  Bytes ram;                           ///< bounds the limits that a host may set
  std::vector<FrameRange> ram_ranges;  ///< for HELLO
  CacheMode cache = CacheMode::off;    ///< until the host chooses another
  PageChoice pages = PageChoice::automatic;
  DeflateMode deflate = DeflateMode::silent;
  std::chrono::milliseconds deflate_every = DeflateReports::kEvery;
};

class Inflater final : private HostLink::Handler {
 public:
  using Clock = std::chrono::steady_clock;
  /// The one wake-up a second at rest.
  static constexpr std::chrono::seconds kTick{1};
  /// After a batch failed here (no memory, no frame number), before the next try.
  static constexpr std::chrono::seconds kFailurePause{1};
  /// After pages could not be locked, before it is tried again: somebody may have raised the limit.
  static constexpr std::chrono::seconds kLockRetry{60};
  /// tell-host-first: how long the balloon may take to go back by request when the agent ends.
  static constexpr std::chrono::seconds kLeaveWithin{20};
  /// When the agent ends: how long it waits for the answer to what it has told. The host may be
  /// about to discard those frames, so they stay pinned till then.
  static constexpr std::chrono::seconds kAnswerWithin{2};

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
  void on_session_start(const wire::Hello& host) override;
  void on_session_end() override;
  void on_limits(const wire::LimitsMessage& message) override;
  void on_ack(const wire::Ack& ack) override;
  void on_purge(const wire::Purge& purge) override;
  void on_cache(const wire::CacheOrder& order) override;
  void on_populated(const wire::Populated& answer) override;
  void on_host_state(const wire::HostState& state) override;

  /// One round of work; true where another round can go on at once.
  [[nodiscard]] bool step(Clock::time_point now);
  [[nodiscard]] bool follow_limits(const Limits& limits, Clock::time_point now);
  [[nodiscard]] bool may_grow(const Limits& limits, Clock::time_point now);
  [[nodiscard]] bool grow(const Limits& limits, Clock::time_point now);
  [[nodiscard]] bool tell();
  void place(Clock::time_point now);
  std::uint64_t drop_evictable(std::uint64_t pages);
  void look_around(Clock::time_point now, bool growing);
  /// Pages that the kernel has moved are told anew; those that have left are named, or forgotten.
  void follow_pages(Clock::time_point now);
  [[nodiscard]] std::vector<GuestFrame> other_frames();
  void become_evictable(Extent extent, std::span<const GuestFrame> frames);
  void stop_growing(GrowthReason why, std::chrono::nanoseconds time);
  void read_pressure(Clock::time_point now);
  /// CPU time of the agent's processes, seconds.
  [[nodiscard]] double own_cpu_seconds() const;
  /// Balloon pages go before the guest's reclaim has to take them.
  void give_way(Clock::time_point now);
  void free_what_cpus_keep(Clock::time_point now);
  /// Balloon pages against free memory that the host has behind it for nothing.
  void exchange_reserve(Clock::time_point now);
  // Deflate mode tell-host-first.
  [[nodiscard]] bool tells_first() const { return config_.deflate == DeflateMode::tell_host_first; }
  void ask_host_to_back(std::uint64_t pages, Clock::time_point now);
  [[nodiscard]] int lock(Batch& batch, std::span<const GuestFrame> frames);
  void keep_what_was_told();
  [[nodiscard]] bool may_leave() const;
  [[nodiscard]] bool takes_leave_first(End end);
  void count_residency(Clock::time_point now);
  void refresh_memory(Clock::time_point now);
  void notice_plugged_memory();
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
  std::uint64_t lockable_pages_;  // of the floor, as far as is known
  Clock::time_point lock_again_{};
  FrameBook book_;
  MovedPages moved_;
  DeflateReports deflate_reports_;
  ToldDeflation told_deflation_;
  Growth growth_;
  Exchange exchange_;
  GiveWay give_way_;
  HostLink link_;

  ExtentList evictable_;
  std::uint64_t evictable_pages_ = 0;  // believed resident; corrected by count_residency()
  FilePage next_evictable_{0};
  FilePage next_locked_ = kFirstLockedPage;
  std::vector<LockedFloor::Released> scratch_;
  std::vector<std::uint64_t> told_;                 // reports of batches, without an answer
  bool host_backs_ = false;                         // it knows POPULATE
  std::optional<wire::LimitsMessage> host_limits_;  // the last, as the host said it
  std::optional<Clock::time_point> leave_until_;

  AgentStats stats_;
  GrowthDecision decision_;
  Clock::time_point decided_at_{};
  bool file_failed_ = false;
  Clock::time_point quiet_until_{};  // after a failure, of our own or the host's
  GrowthReason quiet_reason_ = GrowthReason::failed;
  Clock::time_point next_count_{};
  Clock::time_point next_probe_{};
  Clock::time_point next_memory_{};
  Clock::time_point next_stats_{};
  Clock::time_point next_place_{};
  Clock::time_point next_tick_{};
  Clock::time_point next_pressure_{};
  Clock::time_point next_shortening_{};
  KernelMarks marks_;
  Bytes reserve_;  // what the balloon leaves free
  wire::Stats last_sent_;

  Clock::time_point next_activity_{};
  std::uint64_t activity_ = 0;
  std::uint64_t busy_activity_ = 0;
  std::optional<std::uint64_t> oom_kills_;
  double busy_s_ = 0;
  std::string said_note_;
  UniqueFd cache_progress_;  // an eventfd: memory was freed, look again
  ColdCacheThread cache_;    // last: its thread uses what is above
};

}  // namespace fileballoon::guest
