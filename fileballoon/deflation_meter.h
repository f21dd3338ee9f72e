// DeflationMeter: how much a guest takes back from its balloon, and how fast, from the numbers that
// its fault keeper or its agent reports as it happens. A fast deflate is the pressure signal of a
// guest: events and the arbiter read it here. Time comes in as a value; nothing allocates. Not
// thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

#include "fileballoon/bytes.h"

namespace fileballoon {

class DeflationMeter {
 public:
  using Clock = std::chrono::steady_clock;

  /// The rate is that of the last second, known to a tenth of it.
  static constexpr std::chrono::milliseconds kSlot{100};
  static constexpr std::size_t kSlots = 10;
  /// An episode begins when this much came back within that second: less is everyday reclaim …
  static constexpr Bytes kLeast = Bytes::mib(1);
  /// … and ends when nothing has come back for so long.
  static constexpr std::chrono::seconds kQuiet{2};
  /// It is fast when a second brings back this part of RAM, and at least kFastLeast: what the
  /// arbiter calls a fast deflate.
  static constexpr std::uint64_t kFastPart = 128;
  static constexpr Bytes kFastLeast = Bytes::mib(8);

  /// What the last call changed.
  enum class Change { none, began, became_fast, ended };

  explicit DeflationMeter(Bytes ram);

  /// `amount` came back just now.
  [[nodiscard]] Change add(Bytes amount, Clock::time_point now);
  /// Time has passed; to be called about once a second while an episode lasts.
  [[nodiscard]] Change look(Clock::time_point now);

  /// Since the start; only grows. Who wants "since I last looked" takes differences of this.
  [[nodiscard]] Bytes total() const { return total_; }
  /// Bytes in the second before `now`.
  [[nodiscard]] Bytes per_second(Clock::time_point now) const;
  [[nodiscard]] bool deflating() const { return deflating_; }
  [[nodiscard]] bool fast() const { return fast_; }
  /// Of the running or last episode.
  [[nodiscard]] Bytes episode() const { return episode_; }
  [[nodiscard]] Clock::duration episode_length() const { return last_ - began_; }

 private:
  [[nodiscard]] static std::int64_t slot_of(Clock::time_point now) {
    return now.time_since_epoch() / kSlot;
  }

  Bytes fast_limit_;
  Bytes total_;
  std::array<Bytes, kSlots> slots_{};
  std::int64_t newest_ = 0;  // number of the slot that was added to last
  bool deflating_ = false;
  bool fast_ = false;
  Bytes episode_;
  Clock::time_point began_{};
  Clock::time_point last_{};
};

}  // namespace fileballoon
