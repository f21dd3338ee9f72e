// LostPages: pages whose content could not be had, so that each is told once and, where the kernel
// cannot poison it (Linux before 6.6) and its thread goes on asking, is looked for once a second
// and not fifty thousand times. Thread-safe; takes memory only once something is lost.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <new>
#include <unordered_map>

#include "uffd/pager/page_store.h"

namespace fileballoon {

class LostPages {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kRetry{1};

  /// Whether the page was lost less than kRetry ago.
  [[nodiscard]] bool rests(PageKey page, Clock::time_point now) const {
    const std::lock_guard guard(mutex_);
    const auto found = lost_.find(page.index);
    return found != lost_.end() && now < found->second;
  }
  /// True for the first time.
  [[nodiscard]] bool add(PageKey page, Clock::time_point now) {
    const std::lock_guard guard(mutex_);
    try {
      return lost_.insert_or_assign(page.index, now + kRetry).second;
    } catch (const std::bad_alloc&) {
      return true;  // told again, which is better than never
    }
  }
  /// Its content was had all the same, or is not wanted any more.
  void remove(PageKey page) {
    const std::lock_guard guard(mutex_);
    lost_.erase(page.index);
  }

 private:
  mutable std::mutex mutex_;  // innermost
  std::unordered_map<std::uint32_t, Clock::time_point> lost_;
};

}  // namespace fileballoon
