// The wire protocol between balloonfs and fileballoond: frames on a byte stream, little-endian,
// length-prefixed (docs/protocol.md). This file knows the bytes and their bounds and nothing of
// sockets; session.h knows the order. Both sides treat the other as hostile: every length and count
// is checked before it is used, and a decoder never holds more than one frame.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "fileballoon/cold_cache.h"
#include "fileballoon/frame.h"
#include "fileballoon/limits.h"

namespace fileballoon::wire {

inline constexpr std::array<char, 8> kMagic = {'F', 'B', 'A', 'L', 'L', 'O', 'O', 'N'};
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kHeaderSize = 40;
/// Largest payload: a report of kMaxRanges ranges fits, with room to grow.
inline constexpr std::size_t kMaxPayload = 64 * 1024;
/// Most ranges in a REPORT, ACK or DEFLATED.
inline constexpr std::size_t kMaxRanges = 4096;
/// Most frames that one REPORT may name (64 MiB); bounds the host's work for one batch.
inline constexpr std::uint64_t kMaxFramesPerReport = 16384;
/// Most RAM ranges in a HELLO.
inline constexpr std::size_t kMaxRamRanges = 256;
inline constexpr std::size_t kMaxErrorText = 512;

enum class Type : std::uint16_t {
  hello = 1,
  limits = 2,
  report = 3,
  ack = 4,
  deflated = 5,
  stats = 6,
  purge = 7,
  error = 8,
  cache = 9,
  populate = 10,
  populated = 11,
  host = 12,
};

/// Bits of Hello::features; bits that are not known are ignored.
/// From the host: it answers POPULATE.
inline constexpr std::uint64_t kFeaturePopulate = 1U << 0;
/// From the guest: it will not use a frame that it has reported before POPULATED (deflate mode
/// tell-host-first).
inline constexpr std::uint64_t kFeatureTellHostFirst = 1U << 1;

/// Random, never 0; fresh for every session in each direction. It is the nonce of the handshake.
using SessionId = std::uint64_t;

struct Header {
  Type type{};  ///< may hold a value outside the enumeration: a newer peer's type, to be skipped
  std::uint32_t length = 0;  ///< payload bytes
  SessionId from = 0;        ///< the sender's session
  SessionId to = 0;          ///< the receiver's session as the sender knows it; 0 if it does not
  /// 1, 2, … in each direction; in HELLO: 1 if its sender is established, 0 while it waits.
  std::uint64_t sequence = 0;
};

/// Both directions, first in a session. The host leaves boot_id and ram empty.
struct Hello {
  std::uint64_t features = 0;
  std::array<std::uint8_t, 16> boot_id{};  ///< /proc/sys/kernel/random/boot_id
  std::uint32_t page_size = kPageSize;
  std::vector<FrameRange> ram;  ///< "System RAM" of /proc/iomem
};

/// Host to guest: what the balloon should be.
struct LimitsMessage {
  Limits limits;
  std::uint64_t epoch = 0;
};

/// Guest to host: pinned zero pages. The header's sequence is the batch's name. A frame that names
/// more than kMaxFramesPerReport is malformed, so the counts of an ACK always fit 16 bits.
struct Report {
  std::vector<FrameRange> ranges;
};

/// What became of one range of a report; the four counts add up to the range's frames.
struct RangeOutcome {
  std::uint32_t discarded = 0;  ///< verified zero, and seen to have no memory behind them now
  std::uint32_t not_zero = 0;   ///< hold data; left alone
  std::uint32_t refused = 0;    ///< not RAM, overlapping or out of order; left alone
  std::uint32_t failed = 0;     ///< zero, but the host could not free them
  bool operator==(const RangeOutcome&) const = default;
};

/// Host to guest, after the discard of that very batch has completed.
struct Ack {
  std::uint64_t batch = 0;
  std::vector<RangeOutcome> outcomes;  ///< one per range of the report, in its order
};

/// Guest to host: frames that were balloon and are no longer, whoever took them (deflate mode
/// batched). A host that did not hear of it has lost nothing: it sees the faults.
struct Deflated {
  Bytes resident;
  std::vector<FrameRange> ranges;
};

/// Keys of STATS. Numbers are never reused; unknown keys are kept and ignored.
enum class StatKey : std::uint16_t {
  resident_pages = 1,
  target_pages = 2,
  floor_pages = 3,
  locked_pages = 4,
  in_flight_pages = 5,
  evicted_pages = 6,
  migrated_pages = 7,
  refused_pages = 8,
  mem_total_bytes = 16,
  mem_free_bytes = 17,
  mem_available_bytes = 18,
  cached_bytes = 19,
  psi_some_avg10_centi = 20,  ///< hundredths of a percent
  psi_full_avg10_centi = 21,
  oom_kills = 22,
  growth_reason = 23,        ///< GrowthReason
  inflated_pages = 24,       ///< reported and acknowledged since the agent started
  cache_mode = 25,           ///< CacheMode in force
  cache_method = 26,         ///< ReclaimMethod it works by
  cache_evicted_pages = 27,  ///< cold page cache taken by all modes, purges included
  cache_purged_pages = 28,   ///< of these, on PURGE
  cache_pauses = 29,         ///< times that eviction paused since it did harm
  epoch = 30,                ///< the last epoch that was named to the guest
  deflate_mode = 31,         ///< DeflateMode
};

struct Stats {
  std::vector<std::pair<StatKey, std::uint64_t>> values;
  [[nodiscard]] std::optional<std::uint64_t> find(StatKey key) const;
};

/// Host to guest: give up this much cold page cache at once.
struct Purge {
  Bytes amount;
};

/// Host to guest: what to do with cold page cache, in place of what the guest was mounted with.
struct CacheOrder {
  CacheMode mode = CacheMode::off;
};

enum class ErrorCode : std::uint32_t {
  malformed = 1,  ///< bytes that are no frame
  version = 2,    ///< a version this side does not speak
  sequence = 3,   ///< a gap or a repeat
  page_size = 4,  ///< guests with other base pages are not served
  ram = 5,        ///< the guest's RAM does not match the VM the channel was given for
  busy = 6,       ///< the other side does not read
  detached = 7,   ///< the VM was detached; do not come back soon
  other = 100,
};

struct ErrorMessage {
  ErrorCode code = ErrorCode::other;
  std::string text;
};

/// Guest to host: put memory behind these frames; they stay pinned until the answer. The header's
/// sequence is the request's name. Bounded like a REPORT.
struct Populate {
  std::vector<FrameRange> ranges;
};

/// Host to guest, after the memory is there.
struct Populated {
  std::uint64_t request = 0;
  std::vector<std::uint32_t> backed;  ///< frames backed, one count per range, in their order
};

/// Host to guest, when it has changed by more than a little: what the host measures of the guest.
struct HostState {
  Bytes absent;  ///< guest RAM without memory behind it (RAM minus allocated blocks)
};

struct Unknown {};  ///< a type this version does not know; skipped

using Message = std::variant<Unknown, Hello, LimitsMessage, Report, Ack, Deflated, Stats, Purge,
                             CacheOrder, Populate, Populated, HostState, ErrorMessage>;

struct Frame {
  Header header;
  Message message;
};

/// Appends one frame; header.type and header.length are set here from the message. The caller keeps
/// the bounds above (kMaxRanges, …); only the text of an ERROR is cut here.
void encode(Header header, const Message& message, std::vector<std::byte>& out);

/// Why a stream is not this protocol.
struct DecodeError {
  ErrorCode code = ErrorCode::malformed;
  std::string text;  ///< for a person: what was read, what was expected
};

/// Turns a byte stream into frames. It starts (and restarts) by skipping to something that is a
/// whole valid HELLO header, since a virtio-serial port can deliver the tail of what an earlier
/// reader left. After an error it stays in error until restart().
class Decoder {
 public:
  Decoder();

  /// Takes bytes from the front of `input`, at most what it can hold; returns how many.
  [[nodiscard]] std::size_t feed(std::span<const std::byte> input);
  /// The next whole frame, an error, or nothing (feed more).
  [[nodiscard]] std::optional<std::variant<Frame, DecodeError>> next();
  /// Back to looking for a HELLO; drops what is buffered.
  void restart();
  /// Bytes skipped while looking for a HELLO since construction.
  [[nodiscard]] std::uint64_t skipped() const { return skipped_; }

 private:
  void seek_hello();

  [[nodiscard]] std::span<const std::byte> pending() const {
    return std::span(buffer_).subspan(taken_);
  }

  std::vector<std::byte> buffer_;  // capacity kHeaderSize + kMaxPayload, never more
  std::size_t taken_ = 0;          // bytes of buffer_ already handed out or skipped
  bool seeking_ = true;
  std::optional<DecodeError> failed_;
  std::uint64_t skipped_ = 0;
};

}  // namespace fileballoon::wire
