// What is said about paging on the keeper's socket, beside the messages of uffd/faultd/protocol.h:
// one request and one reply, fixed structures, same build at both ends, told apart from the others
// by their length.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace fileballoon::faultd {

inline constexpr std::uint32_t kPagingMagic = 0x47415046;  // "FPAG"
inline constexpr std::uint32_t kPagingVersion = 3;

/// There while the keeper that listens on `socket` holds paged-out frames. Their content would die
/// with it: it must not be killed then, however long it takes to answer.
[[nodiscard]] inline std::string paging_marker(const std::string& socket) {
  return socket + ".paging";
}

enum class PagingVerb : std::uint32_t {
  start = 1,       ///< begin to make a store; status tells when paging is `active`, or why not
  set_goal = 2,    ///< page out while the VM's RAM takes more than `goal`
  clear_goal = 3,  ///< page out no more
  status = 4,
  page_in = 5,      ///< bring everything back; status tells how far it is
  set_limit = 6,    ///< page out no more, and bring back what lies in the store beyond `goal`
  set_ceiling = 7,  ///< let faults wait where the VM's RAM takes `goal`; kNoCeiling: never
};

inline constexpr std::uint64_t kNoCeiling = ~0ULL;

struct PagingRequest {
  std::uint32_t magic = kPagingMagic;
  std::uint32_t version = kPagingVersion;
  PagingVerb verb = PagingVerb::status;
  std::uint32_t compression = 0;
  std::uint64_t goal = 0;
  // Of start: PagingOptions. Texts end with a zero byte.
  std::uint64_t memory = 0;
  std::uint64_t file = 0;
  std::uint64_t daily_writes = 0;
  std::array<char, 256> vm{};
  std::array<char, 1024> path{};
  std::array<char, 1024> budget_file{};
};

struct PagingEventMessage {
  std::uint32_t kind = 0;
  std::uint32_t status = 0;
  std::uint32_t object = 0;
  std::uint32_t reserved = 0;
  std::uint64_t page = 0;
};

struct PagingReply {
  std::uint32_t magic = kPagingMagic;
  std::uint32_t ok = 0;        ///< 0: `message` says why not
  std::uint32_t active = 0;    ///< paging has been started
  std::uint32_t starting = 0;  ///< the store is being opened; neither: `message`, if that failed
  std::uint32_t state = 0;     ///< PagerService::State
  std::uint32_t stop_reason = 0;
  std::uint32_t method = 0;
  std::uint64_t footprint = 0, goal = 0, held_faults = 0;
  std::uint64_t paged_pages = 0, paged_out = 0, zero_pages = 0, paged_in = 0, faults = 0;
  std::uint64_t read_ahead = 0, write_races = 0, rejected = 0, lost_pages = 0, metadata = 0;
  std::uint64_t store_memory = 0, store_disk = 0, store_limit = 0, file_pages = 0, spilled = 0;
  std::uint32_t detach_started = 0, detach_finished = 0;
  std::uint64_t detach_done = 0, detach_total = 0, detach_lost = 0;
  std::uint32_t event_count = 0, events_dropped = 0;
  std::array<PagingEventMessage, 64> events{};
  std::array<char, 512> message{};
};

}  // namespace fileballoon::faultd
