// PagerService: the thread that pages a VM out towards a footprint. It looks which pages are in use
// while it has something to do (and never otherwise: looking costs the guest faults), pages out the
// coldest, waits while faults wait, gives way when what it paged out comes right back, and stops
// and tries again later where the store cannot take more. All methods are thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "uffd/pager/access_tracker.h"
#include "uffd/pager/clock_hands.h"
#include "uffd/pager/cold_pages.h"
#include "uffd/pager/page_writer.h"
#include "uffd/pager/write_budget.h"

namespace fileballoon {

class PagerService {
 public:
  struct Options {
    /// Time between two looks at what is in use, while there is something to page out.
    std::chrono::milliseconds look_interval{1000};
    /// Looks that a page must have been unused for.
    unsigned min_age = 2;
    /// How long to leave a store alone that was full or failing.
    std::chrono::milliseconds retry{10000};
  };
  enum class State {
    idle,        ///< the footprint is what is wanted
    looking,     ///< waiting to see which pages are cold
    paging_out,  ///< at work
    giving_way,  ///< what was paged out comes back as fast: pausing for an interval
    paging_in,   ///< more is in the store than may be: bringing it back
    stopped,     ///< the store takes no more; see stop_reason
    detached,    ///< page_in_all() has run, or the VM is gone
  };
  struct Status {
    State state = State::idle;
    StoreStatus stop_reason = StoreStatus::ok;
    AccessMethod method = AccessMethod::unmap;
    Bytes footprint;  ///< allocated in the VM's RAM objects now
    Bytes goal;
    std::optional<Bytes> ceiling;
    std::uint64_t held_faults = 0;  ///< had to wait for room below the ceiling, since the start
    PagerStats pager;
  };

  /// `pager` outlives this; `budget` may be null. Starts the thread, with nothing to do.
  PagerService(Pager& pager, AccessTracker tracker, std::shared_ptr<WriteBudget> budget,
               Options options);
  PagerService(const PagerService&) = delete;
  PagerService& operator=(const PagerService&) = delete;
  /// Stops paging out; what is in the store stays there.
  ~PagerService();

  /// Pages out while the VM's RAM takes more than `footprint`. Replaces a limit.
  void set_goal(Bytes footprint);
  /// Pages out no more; what is paged out stays until it is touched.
  void clear_goal();
  /// The most that the VM's RAM may take, at every moment (FillLimit): page-out begins a reserve
  /// below it, and where the guest is faster, its faults wait until there is room; then even pages
  /// that were used lately go, least lately first. A store that takes no more opens the ceiling
  /// until it does, with the event of a stopped page-out. Nothing: no ceiling. Beside the goal.
  void set_ceiling(std::optional<Bytes> most);
  /// Pages out no more, and brings back what lies in the store beyond `paged`, as far as that fits
  /// below the ceiling.
  void set_limit(Bytes paged);

  /// Stops paging out for good and brings everything back; blocks. See Pager::page_in_all().
  Pager::Progress detach(const std::function<bool(const Pager::Progress&)>& progress);

  [[nodiscard]] Status status() const;
  /// Pages that were in use when they were looked at, since the start: each cost the guest a fault.
  [[nodiscard]] std::uint64_t looked_pages() const {
    return looked_pages_.load(std::memory_order_relaxed);
  }
  /// How far below a ceiling page-out begins.
  [[nodiscard]] static Bytes reserve_of(Bytes ceiling);

 private:
  using Clock = std::chrono::steady_clock;

  // What has to go.
  struct Want {
    std::uint64_t pages = 0;
    bool stopped = false;  ///< page-out has to stop
  };

  void run();
  void step(std::unique_lock<std::mutex>& lock);
  [[nodiscard]] State page_out(Bytes excess);
  [[nodiscard]] std::optional<State> look();
  [[nodiscard]] State blind(int error);
  enum class Pace { calm, hurry };
  [[nodiscard]] State make_room(std::uint64_t wanted, Pace pace);
  [[nodiscard]] State turn_clock(Want& want, Pace pace);
  [[nodiscard]] State take_any(Want& want);
  [[nodiscard]] int look_at_next();
  void see_what_came_back();
  void show(State state);
  void enforce_ceiling(State state);
  /// Whether a piece more may be brought back unasked.
  [[nodiscard]] bool has_room(const std::optional<Bytes>& ceiling) const;
  [[nodiscard]] bool look_for_growth(Bytes taken, Clock::time_point now);
  [[nodiscard]] State page_in(Bytes limit);
  /// Beside what is under way.
  [[nodiscard]] std::uint64_t left(const Want& want) const;
  /// Whether to go on. Where what is under way would do, its end says.
  [[nodiscard]] bool goes_on(Want& want);
  /// Writes `batch_`; accounts for it, or for the one before it (PageWriter::write()).
  void write_batch(Want& want);
  /// Accounts for the one that is under way.
  void end_batch(Want& want);
  void account(const PageWriter::Outcome& outcome, Want& want);
  void yield_to_faults();
  [[nodiscard]] bool faults_wait() const;
  [[nodiscard]] Bytes footprint() const;
  void stop_for(StoreStatus why);

  Pager& pager_;
  AccessTracker tracker_;
  std::shared_ptr<WriteBudget> budget_;
  Options options_;
  PageWriter writer_;
  ColdPages cold_;
  ColdPages::Batch batch_;

  mutable std::mutex mutex_;  // never held while working
  std::condition_variable wake_;
  bool quit_ = false;
  std::optional<Bytes> goal_;
  std::optional<Bytes> ceiling_;
  std::optional<Bytes> limit_;
  State state_ = State::idle;
  StoreStatus stop_reason_ = StoreStatus::ok;
  // The thread's own.
  Clock::time_point next_look_{};
  Clock::time_point retry_at_{};
  Clock::time_point next_upkeep_{};
  Bytes lowest_;  // footprint since it grew last
  Clock::time_point grew_at_{};
  std::uint64_t faults_before_ = 0;
  std::uint64_t out_before_ = 0;
  unsigned fruitless_ = 0;  // attempts to make room, one after the other, that made none
  std::atomic<std::uint64_t> looked_pages_{0};
  // Of make_room().
  ClockHands hands_;
  Clock::time_point next_calm_look_{};
  std::uint64_t room_faults_ = 0;  // at the last see_what_came_back(), likewise
  std::uint64_t room_out_ = 0;
  Clock::time_point take_any_until_{};
  std::atomic<bool> interrupt_{false};
  std::thread thread_;
};

[[nodiscard]] std::string_view to_string(PagerService::State state);

}  // namespace fileballoon
