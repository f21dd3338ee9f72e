// ColdCacheThread: runs a ColdCache in a thread of its own, since the kernel's reclaim blocks for
// as long as it works and the inflater must go on serving its channel meanwhile. Methods are called
// by the inflater's thread and never wait for the kernel. At rest the thread sleeps until update()
// sees that something happens, so it adds no wake-ups.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "guest-fs/reclaim/cold_cache.h"

namespace fileballoon::guest {

class ColdCacheThread {
 public:
  using Clock = ColdCache::Clock;
  /// Movement of CacheNumbers::activity between two updates that ends a rest.
  static constexpr std::uint64_t kActive = 4096;

  /// `on_progress` is called by the thread after pages have been freed. Throws std::system_error.
  ColdCacheThread(std::unique_ptr<CacheKernel> kernel, CacheMode mode,
                  std::function<void()> on_progress);
  ~ColdCacheThread();
  ColdCacheThread(const ColdCacheThread&) = delete;
  ColdCacheThread& operator=(const ColdCacheThread&) = delete;

  /// The inflater's news, once a second or more often; `activity` as in CacheNumbers. Memory that
  /// programs have just given up is looked into at once: it is when cache becomes cold.
  void update(const BalloonView& balloon, std::uint64_t activity);
  void set_mode(CacheMode mode);
  void set_epoch(std::uint64_t epoch);
  /// Amounts asked for while a purge runs are taken as one.
  void purge(Bytes amount);
  [[nodiscard]] ColdCacheStats stats() const;

 private:
  void run();
  [[nodiscard]] bool sees_release(const BalloonView& balloon);

  const std::unique_ptr<CacheKernel> kernel_;
  const std::function<void()> on_progress_;
  ColdCache cache_;  // the thread's own

  mutable std::mutex mutex_;  // guards everything below; never held while the kernel works
  std::condition_variable changed_;
  BalloonView balloon_;
  bool news_ = false;
  bool stirred_ = false;
  bool stop_ = false;
  std::uint64_t activity_ = 0;
  Bytes least_spare_;  // free memory and balloon, the least since the last release
  std::optional<CacheMode> mode_wanted_;
  std::optional<std::uint64_t> epoch_wanted_;
  Bytes purge_wanted_;
  ColdCacheStats published_;

  pthread_t thread_{};
};

}  // namespace fileballoon::guest
