// GenerationTurn: how ages are kept for one list of pages (one memory cgroup on one node) by the
// kernel's multi-generational LRU. A turn closes the oldest generation, waits, and then has the
// kernel evict what is still in it. The kernel's own rules decide which pages those are; this class
// only decides when it is asked to age and to evict. Pure; the clock enters as a value.
//
// Why "closing" (read in Linux 6.12 mm/vmscan.c, mm/swap.c, and seen in a guest): a page that is
// read through a file descriptor joins the oldest generation while the list has three or fewer, and
// the second oldest once it has four, the most there can be. So ageing until there are four closes
// the oldest one: nothing new enters it, and after a wait all that is in it is at least that old.
// Ageing a list of four merges the oldest generation into the next and forgets how often its pages
// were read, so the oldest must have been emptied first.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace fileballoon {

/// The file pages of one list, as /sys/kernel/debug/lru_gen shows them.
struct GenerationView {
  std::uint64_t oldest = 0;    ///< number of the oldest generation that can hold file pages
  std::uint64_t youngest = 0;  ///< number of the youngest
  std::uint64_t oldest_pages = 0;
  std::uint64_t file_pages = 0;  ///< in all generations
};

class GenerationTurn {
 public:
  using Clock = std::chrono::steady_clock;
  /// MAX_NR_GENS of the kernel.
  static constexpr std::uint64_t kMostGenerations = 4;
  /// MIN_NR_GENS: the two youngest generations cannot be evicted.
  static constexpr std::uint64_t kLeastGenerations = 2;
  /// Evictions that take nothing before the generation is given up (its pages are dirty, locked or
  /// pinned) and merged.
  static constexpr unsigned kFruitless = 2;

  enum class Step {
    wait,   ///< until `due`
    age,    ///< ask for generation `generation` + 1
    evict,  ///< ask for generation `generation` to be evicted
    done,   ///< the closed generation is empty; the next decide() begins another turn
  };
  struct Decision {
    Step step = Step::wait;
    std::uint64_t generation = 0;
    Clock::time_point due{};
  };

  /// `patience`: how long a closed generation is left alone before it is evicted.
  [[nodiscard]] Decision decide(const GenerationView& view, Clock::time_point now,
                                Clock::duration patience);
  /// What the kernel took at the last Step::evict.
  void evicted(std::uint64_t pages);

  /// What pages were used for so far says nothing any more: begins again, with one age command even
  /// though the oldest generation holds pages, since that makes the kernel forget its counts.
  void restart();

  [[nodiscard]] bool is_closed() const { return closed_.has_value(); }

 private:
  struct Closed {
    std::uint64_t generation;
    Clock::time_point at;
  };
  std::optional<Closed> closed_;
  unsigned fruitless_ = 0;
  bool stuck_ = false;
};

/// The host's epoch. It only ever moves the guest forward, one turn at a time: steps that arrive
/// while a turn runs, or sooner than kShortest after the last one, are one step.
class EpochClock {
 public:
  using Clock = std::chrono::steady_clock;
  /// Ages finer than this mean nothing, and ageing walks page tables.
  static constexpr std::chrono::seconds kShortest{1};

  /// The epoch the host names. The first one, or one lower than before (a host that counts anew),
  /// is only a starting point.
  void set(std::uint64_t epoch);
  /// Whether a turn is due now.
  [[nodiscard]] bool due(Clock::time_point now) const;
  /// When due() may become true without another set(); nothing if no step is pending.
  [[nodiscard]] std::optional<Clock::time_point> next() const;
  /// A turn begins: it serves every step so far.
  void begin(Clock::time_point now);

  [[nodiscard]] std::uint64_t wanted() const { return wanted_.value_or(0); }
  [[nodiscard]] std::uint64_t served() const { return served_; }
  [[nodiscard]] std::uint64_t turns() const { return turns_; }

 private:
  std::optional<std::uint64_t> wanted_;
  std::uint64_t served_ = 0;
  std::uint64_t turns_ = 0;
  std::optional<Clock::time_point> last_turn_;
};

}  // namespace fileballoon
