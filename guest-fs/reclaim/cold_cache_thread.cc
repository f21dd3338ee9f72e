#include "guest-fs/reclaim/cold_cache_thread.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace fileballoon::guest {
namespace {

/// The agent locks its memory: a default stack of 8 MiB would be 8 MiB less for the guest.
constexpr std::size_t kStackSize = 256 * 1024;

}  // namespace

ColdCacheThread::ColdCacheThread(std::unique_ptr<CacheKernel> kernel, CacheMode mode,
                                 std::function<void()> on_progress)
    : kernel_(std::move(kernel)),
      on_progress_(std::move(on_progress)),
      cache_(*kernel_, mode),
      published_(cache_.stats()) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackSize);
  const int error = pthread_create(
      &thread_, &attributes,
      [](void* self) -> void* {
        static_cast<ColdCacheThread*>(self)->run();
        return nullptr;
      },
      this);
  pthread_attr_destroy(&attributes);
  if (error != 0) {
    throw std::system_error(error, std::generic_category(), "start the cold-cache thread");
  }
}

ColdCacheThread::~ColdCacheThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  pthread_join(thread_, nullptr);
}

void ColdCacheThread::update(const BalloonView& balloon, std::uint64_t activity) {
  {
    const std::lock_guard lock(mutex_);
    const bool wants = balloon.connected && balloon.resident < balloon.target;
    const bool wanted = balloon_.connected && balloon_.resident < balloon_.target;
    const bool is_short = balloon.free <= balloon.reserve + ColdCache::kShort;
    const bool was_short = balloon_.free <= balloon_.reserve + ColdCache::kShort;
    balloon_ = balloon;
    const bool active = activity - std::exchange(activity_, activity) >= kActive;
    stirred_ = stirred_ || active;
    const bool released = sees_release(balloon);
    if (!active && !released && wants == wanted && is_short == was_short) {
      return;
    }
    news_ = true;
  }
  changed_.notify_one();
}

bool ColdCacheThread::sees_release(const BalloonView& balloon) {
  // What nothing but the balloon has: only memory that was given up makes it more. What the thread
  // frees itself does too, which is no news to it.
  const Bytes spare = balloon.free + balloon.resident;
  const bool released = spare >= least_spare_ + Bytes::pages(ColdCache::kReleased);
  if (released || spare < least_spare_ || published_.state == CacheState::evicting) {
    least_spare_ = spare;
  }
  return released && published_.state != CacheState::evicting;
}

void ColdCacheThread::set_mode(CacheMode mode) {
  {
    const std::lock_guard lock(mutex_);
    mode_wanted_ = mode;
    published_.mode = mode;
  }
  changed_.notify_one();
}

void ColdCacheThread::set_epoch(std::uint64_t epoch) {
  {
    const std::lock_guard lock(mutex_);
    if (epoch_wanted_ == epoch) {
      return;
    }
    epoch_wanted_ = epoch;
    published_.epoch = epoch;
    news_ = true;
  }
  changed_.notify_one();
}

void ColdCacheThread::purge(Bytes amount) {
  {
    const std::lock_guard lock(mutex_);
    purge_wanted_ = std::max(purge_wanted_, amount);
  }
  changed_.notify_one();
}

ColdCacheStats ColdCacheThread::stats() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

void ColdCacheThread::run() {
  Clock::time_point due = Clock::now();
  std::uint64_t evicted = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    const auto called = [this] {
      return stop_ || news_ || mode_wanted_ || purge_wanted_ > Bytes(0);
    };
    if (due == Clock::time_point::max()) {
      changed_.wait(lock, called);
    } else {
      changed_.wait_until(lock, due, called);
    }
    if (stop_) {
      return;
    }
    const BalloonView balloon = balloon_;
    const auto mode = std::exchange(mode_wanted_, std::nullopt);
    const auto epoch = epoch_wanted_;
    const Bytes purge = std::exchange(purge_wanted_, Bytes(0));
    const bool stirred = std::exchange(stirred_, false);
    news_ = false;
    lock.unlock();

    if (mode) {
      cache_.set_mode(*mode);
    }
    if (epoch) {
      cache_.set_epoch(*epoch);
    }
    if (stirred) {
      cache_.stir();
    }
    if (purge > Bytes(0)) {
      cache_.purge(purge);
    }
    due = cache_.tick(balloon, Clock::now());
    ColdCacheStats stats = cache_.stats();
    if (std::exchange(evicted, stats.evicted_pages) != stats.evicted_pages) {
      on_progress_();
    }

    lock.lock();
    if (mode_wanted_) {
      stats.mode = *mode_wanted_;
    }
    published_ = std::move(stats);
  }
}

}  // namespace fileballoon::guest
