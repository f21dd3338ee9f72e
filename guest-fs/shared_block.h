// SharedBlock: one page of memory that the two processes of the agent share. The limits go both
// ways (a write to `target` in the mount, or LIMITS from the host), the statistics go from the
// inflater to the file system, the refresh request the other way. All of it is lock-free, so that
// neither process can block the other, whatever happens to it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "fileballoon/growth.h"
#include "fileballoon/limits.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

/// What the inflater knows, as `stats` shows it. Counters run since the agent started.
struct AgentStats {
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  std::uint64_t resident_pages = 0;   ///< in the page cache, acknowledged by the host or on the way
  std::uint64_t locked_pages = 0;     ///< of these, locked (the floor)
  std::uint64_t in_flight_pages = 0;  ///< filled or reported, not acknowledged yet
  std::uint64_t inflated_pages = 0;   ///< acknowledged as discarded
  std::uint64_t evicted_pages = 0;    ///< taken back by the guest
  std::uint64_t yielded_pages = 0;    ///< of these, given up before its reclaim had to take them
  std::uint64_t dropped_pages = 0;    ///< given up because the target fell
  std::uint64_t exchanged_pages = 0;  ///< given up, and as many taken from what programs had used
  std::uint64_t cancelled_pages = 0;  ///< lost with their channel before the acknowledgement
  std::uint64_t migrated_pages = 0;   ///< pages that the kernel moved and that were reported anew
  std::uint64_t named_pages = 0;      ///< deflate=batched: frames named to the host as gone
  std::uint64_t unbacked_pages = 0;   ///< tell-host-first: frames the host could not back
  std::uint64_t not_zero_pages = 0;   ///< the host saw data in them
  std::uint64_t refused_pages = 0;    ///< the host did not know the frames
  std::uint64_t failed_pages = 0;     ///< zero, but the host could not free them
  std::uint64_t sessions = 0;         ///< opened with the host
  std::uint64_t connected = 0;        ///< 1 while a session stands
  std::uint64_t lock_limited = 0;     ///< 1: no more of the floor can be locked
  std::uint64_t host_absent_bytes =
      kUnknown;                           ///< RAM without memory behind it, as the host measures
  std::uint64_t deflate_mode = 0;         ///< DeflateMode
  std::uint64_t free_bytes = 0;           ///< MemFree when last looked
  std::uint64_t reserve_bytes = 0;        ///< free memory the balloon leaves alone
  std::uint64_t growth_reason = 0;        ///< GrowthReason
  std::uint64_t growth_wait_ns = 0;       ///< what is left of a back-off
  std::uint64_t purged_bytes = 0;         ///< page cache given up on the host's request
  std::uint64_t epoch = 0;                ///< the last one the host named
  std::uint64_t epoch_turns = 0;          ///< times that one was obeyed
  std::uint64_t cache_mode = 0;           ///< CacheMode
  std::uint64_t cache_method = 0;         ///< ReclaimMethod
  std::uint64_t cache_state = 0;          ///< CacheState
  std::uint64_t cache_evicted_pages = 0;  ///< cold page cache taken
  std::uint64_t cache_pauses = 0;         ///< since eviction did harm
  std::uint64_t large_pages = 0;          ///< 1: folios of 2 MiB, 0: pages of 4 KiB
  std::array<char, 128> pages_note{};     ///< why the pages are small; ends with 0
  std::array<char, 320> cache_note{};     ///< what the kernel lacks for the mode; ends with 0
};

class SharedBlock {
 public:
  /// To be made before the fork. Throws std::system_error.
  [[nodiscard]] static SharedBlock* create();

  [[nodiscard]] Limits limits() const;
  void set_limits(Limits limits);
  /// Replaces the limits if they are still `expected`.
  [[nodiscard]] bool change_limits(Limits expected, Limits desired);

  void publish(const AgentStats& stats);
  [[nodiscard]] AgentStats stats() const;

  /// The file system asks for fresh statistics; the inflater answers with publish().
  std::atomic<std::uint32_t> refresh_wanted{0};
  std::atomic<std::uint32_t> refresh_done{0};

 private:
  SharedBlock() = default;

  static constexpr std::size_t kWords = sizeof(AgentStats) / sizeof(std::uint64_t);
  /// Target and floor in pages, 32 bits each (16 TiB), so that a pair is always seen whole.
  std::atomic<std::uint64_t> limits_{0};
  /// Even while `words_` are consistent (a sequence lock).
  std::atomic<std::uint64_t> version_{0};
  std::array<std::atomic<std::uint64_t>, kWords> words_{};
};

}  // namespace fileballoon::guest
