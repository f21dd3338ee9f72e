// GiveWay: when the balloon gives memory back by itself, before the kernel has to take it. Reclaim
// that is woken asks every memory cgroup for its share, so that a program which fills memory loses
// files that it reads all the time beside pages of the balloon (seen on Linux 6.12: 22,000 refaults
// while a working set grew by 100 MiB), and it waits for direct reclaim. Dropping balloon pages
// costs nobody anything. No call of the system; the clock enters as a value; not thread-safe.
// docs/guest.md explains it to users.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "fileballoon/bytes.h"

namespace fileballoon {

class GiveWay {
 public:
  using Clock = std::chrono::steady_clock;
  /// How often free memory is looked at in a guest that works. A look is one sysinfo(2).
  static constexpr std::chrono::milliseconds kLook{50};
  /// How far ahead: what is taken in this time at the present rate is to be free without reclaim.
  /// Three looks, since a look may come late in a guest that is busy.
  static constexpr std::chrono::milliseconds kAhead{150};
  /// The least that is given, and the most at a time: pages that turn out not to be needed have to
  /// be taken anew.
  static constexpr Bytes kLeast = Bytes::mib(8);
  static constexpr Bytes kMost = Bytes::mib(64);
  /// Growth waits for this long afterwards.
  static constexpr std::chrono::milliseconds kPause{500};

  /// A look: `free` memory, and the `watermark` below which the kernel reclaims. Pages that the
  /// balloon is to give up now, 0 where there is no need.
  [[nodiscard]] std::uint64_t look(Bytes free, Bytes watermark, Clock::time_point now);
  /// The balloon has given this much up since.
  void gave(std::uint64_t pages) { given_ += Bytes::pages(pages); }
  /// Free memory is moving because the balloon does: its rate says nothing.
  void forget() { last_.reset(); }

 private:
  struct Look {
    Bytes free;
    Clock::time_point at;
  };
  std::optional<Look> last_;
  Bytes given_;
  double fresh_rate_ = 0;  // bytes a second that the guest took before the last look
  double rate_ = 0;        // the lesser of that and the one before: what goes on
};

}  // namespace fileballoon
