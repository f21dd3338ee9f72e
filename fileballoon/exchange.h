// Exchange: when free memory that programs have used is exchanged for balloon pages, which the host
// has taken already. The balloon leaves the guest a reserve of free memory. In a guest that has
// just booted nothing was ever written there; once programs have come and gone, the host has memory
// behind all of it, for nothing. So when the balloon has what it can have, the inflater drops some
// of its oldest pages and fills as many new ones from what programs gave up. No call of the system;
// the clock enters as a value; not thread-safe. docs/guest.md explains it to users.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

namespace fileballoon {

class Exchange {
 public:
  using Clock = std::chrono::steady_clock;
  /// Less than this (16 MiB) is not worth the time.
  static constexpr std::uint64_t kLeast = 4096;
  /// How long the balloon has had what it can have: a program that ends gives up memory in pieces.
  static constexpr std::chrono::milliseconds kStill{300};
  /// An exchange is followed by this many times its length without one, so that it costs a guest in
  /// which programs come and go all the time a tenth of a CPU at most.
  static constexpr int kPause = 9;

  /// Free memory that may have been used, in pages.
  struct Free {
    std::vector<std::uint64_t> in_cpu_lists;  ///< by number of the CPU
    std::uint64_t in_small_blocks = 0;        ///< of less than a folio
  };
  /// A part of an exchange: that many small pages, from the list of that CPU if one is named.
  struct Part {
    std::uint64_t pages = 0;
    std::optional<unsigned> cpu;
  };

  /// The balloon has grown by memory that was free: as much may have been used before. Pages that
  /// the kernel has moved count as well, since it has read the frames that are free now.
  void note_growth(std::uint64_t pages) { used_ += pages; }

  /// `at_reserve`: the balloon has what it can have at this moment. True when one should begin().
  [[nodiscard]] bool due(bool at_reserve, Clock::time_point now);
  void begin(const Free& free, Clock::time_point now);
  [[nodiscard]] bool is_under_way() const { return !parts_.empty(); }
  /// What to exchange next, at most `most` pages; nothing when it is over.
  [[nodiscard]] std::optional<Part> next(std::uint64_t most, Clock::time_point now);
  /// Something else has become more important; what is left counts as used as before.
  void end(Clock::time_point now);
  /// There is nothing to exchange for.
  void give_up(Clock::time_point now);

 private:
  std::uint64_t used_ = 0;
  std::vector<Part> parts_;  // the last comes first
  std::optional<Clock::time_point> still_since_;
  Clock::time_point begun_{};
  Clock::time_point not_before_{};
};

}  // namespace fileballoon
