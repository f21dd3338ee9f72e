// What fileballoon-faultd and its client say to each other: one packet a message on a
// SOCK_SEQPACKET UNIX socket, fixed structures, both ends from the same build (a client of another
// version makes the old keeper leave and starts its own). The peer is another process of the same
// user, checked by SO_PEERCRED; lengths are checked nevertheless.
#pragma once

#include <array>
#include <cstdint>

#include "uffd/discard.h"
#include "uffd/fault_engine.h"

namespace fileballoon::faultd {

inline constexpr std::uint32_t kMagic = 0x44544C46;  // "FLTD"
inline constexpr std::uint32_t kVersion = 2;
inline constexpr std::size_t kMaxBackings = 64;
inline constexpr std::size_t kMaxRanges = 256;

enum class Operation : std::uint32_t {
  hello = 1,    ///< who is kept
  discard = 2,  ///< verify and discard one range
  stats = 3,
  drain = 4,   ///< refaulted ranges; waits up to timeout_ms for the first
  detach = 5,  ///< give the VM back to the kernel and exit
  /// Pages deflated since the keeper started; waits up to timeout_ms while they are `start`.
  deflation = 6,
};

struct Request {
  std::uint32_t magic = kMagic;
  std::uint32_t version = kVersion;
  Operation operation = Operation::hello;
  std::uint32_t backing = 0;
  std::uint64_t start = 0;
  std::uint64_t size = 0;
  std::uint32_t timeout_ms = 0;
  std::uint32_t reserved = 0;
};

struct BackingId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  bool operator==(const BackingId&) const = default;
};

struct HelloReply {
  std::uint32_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::int32_t pid = 0;  ///< of the VMM
  std::uint32_t backing_count = 0;
  std::uint64_t start_time = 0;
  RefaultMode refaults = RefaultMode::engine;
  std::uint32_t reserved = 0;
  std::array<BackingId, kMaxBackings> backings{};
};

struct DiscardReply {
  DiscardOutcome outcome;
};

struct StatsReply {
  EngineStats engine;
  std::uint64_t refaulted_pages = 0;
  std::uint64_t absent_pages = 0;  ///< 0 where the kernel answers refaults: it is not known then
  std::uint64_t refused_pieces = 0;
  std::uint32_t lost = 0;     ///< the VMM has moved its RAM: attach anew
  std::uint32_t serving = 1;  ///< a reader runs
};

struct RefaultedRange {
  std::uint64_t start = 0;
  std::uint64_t size = 0;
  std::uint64_t backing = 0;
};

struct DrainReply {
  std::uint32_t count = 0;
  std::uint32_t complete = 1;  ///< 0: some were dropped, or more wait
  std::array<RefaultedRange, kMaxRanges> ranges{};
};

struct DeflationReply {
  std::uint64_t pages = 0;
};

struct DetachReply {
  std::uint32_t done = 1;
};

}  // namespace fileballoon::faultd
