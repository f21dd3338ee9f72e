// PagerEvents: what an operator should hear from a pager, kept until the control plane drains it.
// Posting allocates nothing and never waits for the drainer for longer than a copy; when nobody
// drains, the oldest are dropped and counted. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "uffd/pager/page_store.h"

namespace fileballoon {

struct PagerEvent {
  enum class Kind : std::uint8_t {
    stopped,        ///< page-out stopped; `status` says why
    resumed,        ///< page-out works again
    page_lost,      ///< the content of `page` cannot be had: it was poisoned; `status` says why
    page_withheld,  ///< as before, on a kernel that cannot poison: whatever touches it waits
    huge_page,      ///< a huge page did not split: the page was put back and page-out stopped
  };
  Kind kind = Kind::stopped;
  StoreStatus status = StoreStatus::ok;
  std::uint32_t object = 0;
  std::uint64_t page = 0;
};

/// For logs: "page-out stopped: the store is full".
[[nodiscard]] std::string to_string(const PagerEvent& event);
/// For machines: "stopped", "resumed", "page-lost", "page-withheld", "huge-page".
[[nodiscard]] std::string_view name_of(PagerEvent::Kind kind);

class PagerEvents {
 public:
  void post(const PagerEvent& event);
  /// Calls `visit` for each waiting event, oldest first, without holding the lock. Returns how many
  /// were dropped since the last call.
  std::uint64_t drain(const std::function<void(const PagerEvent&)>& visit);

 private:
  static constexpr std::size_t kCapacity = 64;
  std::mutex mutex_;  // innermost
  std::array<PagerEvent, kCapacity> ring_{};
  std::uint64_t written_ = 0;
  std::uint64_t read_ = 0;
  std::uint64_t dropped_ = 0;
};

}  // namespace fileballoon
