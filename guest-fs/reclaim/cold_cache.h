// ColdCache: turns the guest's cold page cache into free memory, which the balloon then takes. It
// carries out the chosen mode by the kernel's own reclaim, one small piece of work per tick, and
// knows at any time why it is doing what it does. ColdCacheThread calls it; nothing here reads a
// clock. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "fileballoon/bytes.h"
#include "fileballoon/cold_cache.h"
#include "fileballoon/cold_cache_pace.h"
#include "fileballoon/cold_cache_turn.h"
#include "guest-fs/reclaim/cache_kernel.h"

namespace fileballoon::guest {

/// What the inflater knows when it calls.
struct BalloonView {
  Bytes resident;
  Bytes target;
  Bytes free;              ///< MemFree
  Bytes reserve;           ///< what the balloon leaves free
  bool connected = false;  ///< a host is there to take what is freed
};

/// Values travel through shared memory to `stats`.
enum class CacheState : std::uint8_t {
  off,
  not_possible,    ///< see the note
  nothing_to_do,   ///< the balloon is at its target, or there is no host
  memory_at_hand,  ///< unmapped-first: there is free memory to grow into
  waiting,         ///< for what is closed to be old enough, or for the host's epoch
  evicting,
  refaulting,  ///< braking: what was evicted came back
  stalling,    ///< braking: tasks wait for memory
};
[[nodiscard]] std::string_view to_string(CacheState state);

struct ColdCacheStats {
  CacheMode mode = CacheMode::off;
  ReclaimMethod method = ReclaimMethod::none;
  CacheState state = CacheState::off;
  std::uint64_t evicted_pages = 0;  ///< by all modes, purges included
  std::uint64_t purged_pages = 0;
  std::uint64_t brakes = 0;  ///< times that the pace saw harm
  std::uint64_t epoch = 0;   ///< the last one the host named
  std::uint64_t epoch_turns = 0;
  std::string note;  ///< what the kernel lacks for this mode
};

class ColdCache {
 public:
  using Clock = std::chrono::steady_clock;
  /// How long closed pages wait before they count as cold. The kernel protects pages that were read
  /// five times between two looks, so what is read two or three times a second is safe. Of what is
  /// read less often some bites go, come back, and double this time (CachePace::caution()), up to
  /// half a minute: files that are read every few seconds are safe by then.
  static constexpr std::chrono::milliseconds kPatience{2000};
  /// The same once, for what was there when the guest gave up memory: then something has changed,
  /// and a smaller working set is to show on the host within 5 s. What is read ten times a second
  /// is safe. Of what is read four times a second the bite is lost in which it comes first, since
  /// the kernel says at once that it was in use; its refaults then have the kernel spare the rest.
  /// What is read less often may lose the first bites.
  static constexpr std::chrono::milliseconds kFreshPatience{500};
  /// At most this many times what the guest gave up goes that early: a program uses files beside
  /// its memory, and much more of them is no longer likely to be its own.
  static constexpr std::uint64_t kFreshShare = 2;
  /// Turns that begin so early after a release. What a program used lies in more than one
  /// generation: pages that a scan has spared before are in the next.
  static constexpr unsigned kFreshTurns = 3;
  /// What is given up within this time after a release belongs to it.
  static constexpr std::chrono::milliseconds kOneRelease{1000};
  /// When a full balloon waits for memory, unmapped cache need not be cold, only not in use now.
  static constexpr std::chrono::milliseconds kShortPatience{250};
  /// Between two pieces of work: time for refaults to show. The first second takes about 100 MiB.
  static constexpr std::chrono::milliseconds kWorkTick{100};
  /// The same for what became cold at once, as long as the kernel says of each bite that nothing in
  /// it was in use (read twice or more since the list was closed).
  static constexpr std::chrono::milliseconds kFreshTick{50};
  /// The share of a bite (one in 16) that makes it one of pages in use. The next one waits until
  /// their refaults must have shown, or this long: a program that reads them comes back to them
  /// within the time in which it was seen to read them twice.
  static constexpr std::uint64_t kInUseShare = 16;
  static constexpr std::chrono::milliseconds kShowsWithin{1000};
  /// The host's epochs are orders: smaller pieces, no pauses.
  static constexpr std::chrono::milliseconds kEpochTick{50};
  static constexpr std::uint64_t kEpochStep = 4096;
  /// Nothing found and nothing happening: patience stretches up to this factor, to 16 s.
  static constexpr unsigned kMostRest = 8;
  /// Lists with less than this are not worth a walk over page tables.
  static constexpr std::uint64_t kLeastPages = 128;
  /// unmapped-first leaves this much: what is left is mapped, or about to be.
  static constexpr std::uint64_t kLeastUnmapped = 4096;
  /// unmapped-first: free memory within this of the reserve is short.
  static constexpr Bytes kShort = Bytes::mib(16);
  /// Anonymous memory that the guest gives up between two looks and that ends all caution: 16 MiB.
  /// A program that frees memory, or ends, has likely stopped using files too.
  static constexpr std::uint64_t kReleased = 4096;
  /// At most this often is such a release taken for a new beginning, after which all pages have to
  /// show anew that they are in use: a guest in which programs come and go all the time would never
  /// get to the end of a turn.
  static constexpr std::chrono::seconds kRestartEvery{5};
  /// Without generations a step is at most this share of the cache in a tick of a second.
  static constexpr std::uint64_t kStepShare = 64;
  static constexpr std::chrono::milliseconds kStepTick{1000};

  ColdCache(CacheKernel& kernel, CacheMode mode);

  void set_mode(CacheMode mode);
  void set_epoch(std::uint64_t epoch) { epochs_.set(epoch); }
  /// Takes up to `amount` at once, cold or not, in any mode. Blocks until it is done or nothing
  /// more can be taken. Returns what went.
  Bytes purge(Bytes amount);

  /// Does the work that is due; returns when it wants to be called again (time_point::max(): when
  /// something changes).
  [[nodiscard]] Clock::time_point tick(const BalloonView& balloon, Clock::time_point now);
  /// The guest has come to life: what counts as cold is looked at often again.
  void stir() {
    rest_ = 1;
    rest_since_ = {};
  }
  [[nodiscard]] ColdCacheStats stats() const;

 private:
  struct ListState {
    GenerationTurn turn;
    bool pending = false;      ///< epoch: a turn has been ordered
    bool evicting = false;     ///< the closed generation has been bitten
    bool unmissed = false;     ///< and a bite of pages that were in use did not come back
    unsigned fresh_turns = 0;  ///< this one and those to come that do not wait for long
    std::uint64_t in_use = 0;  ///< CacheList::evicted_in_use before the last bite
    std::uint64_t bite = 0;    ///< pages of that bite
    Clock::time_point bitten_at{};
    std::uint64_t brakes = 0;  ///< CachePace::brakes() at that bite
  };
  using ListKey = std::pair<std::uint64_t, unsigned>;

  [[nodiscard]] Clock::time_point unmapped_first(const BalloonView& balloon, Clock::time_point now);
  [[nodiscard]] Clock::time_point proactive(Clock::time_point now);
  [[nodiscard]] Clock::time_point epoch(Clock::time_point now);
  /// Turns of all lists; takes at most `allowance` pages in this tick.
  [[nodiscard]] Clock::time_point turn_lists(Clock::duration patience, std::uint64_t allowance,
                                             Clock::time_point now);
  /// One list's part; lowers `allowance` by what it took.
  [[nodiscard]] Clock::time_point turn(const CacheList& list, ListState& state,
                                       Clock::duration patience, std::uint64_t& allowance,
                                       Clock::time_point now);
  /// When the next bite may follow the last one.
  [[nodiscard]] Clock::time_point next_bite(const CacheList& list, const ListState& state,
                                            Clock::duration patience) const;
  std::uint64_t step(std::uint64_t pages);
  [[nodiscard]] Clock::time_point brake();
  /// The guest has given up memory, or not.
  void look_for_release(Clock::time_point now);
  /// Ages are counted anew, once.
  void begin_anew(Clock::time_point now);
  [[nodiscard]] bool is_fresh(const ListState& state) const;
  void end_fresh();
  void rest_or_not(Clock::time_point now);
  [[nodiscard]] std::uint64_t unmapped_pages(const BalloonView& balloon) const;
  std::uint64_t count(const Taken& taken);

  CacheKernel& kernel_;
  CacheMode mode_ = CacheMode::off;
  MethodChoice choice_;
  CachePace pace_;
  EpochClock epochs_;
  std::map<ListKey, ListState> lists_;
  CacheNumbers numbers_;
  std::uint64_t anonymous_ = 0;  // the most since the last release
  bool restart_wanted_ = false;  // memory was given up; not before next_restart_
  Clock::time_point next_restart_{};
  Clock::time_point released_at_{};
  std::uint64_t fresh_left_ = 0;  // pages that may go early
  bool fresh_did_harm_ = false;   // since the last release
  ColdCacheStats stats_;
  CacheState state_ = CacheState::off;

  unsigned rest_ = 1;
  Clock::time_point rest_since_{};
  std::uint64_t rest_evicted_ = 0;      // evicted_pages at rest_since_
  std::uint64_t epoch_cache_ = 0;       // steps: cache there was when the last epoch began
  std::uint64_t epoch_pages_left_ = 0;  // steps: what this epoch may still take
};

}  // namespace fileballoon::guest
