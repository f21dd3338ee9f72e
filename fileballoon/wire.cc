#include "fileballoon/wire.h"

#include <algorithm>
#include <boost/endian/conversion.hpp>
#include <concepts>
#include <cstring>

namespace fileballoon::wire {
namespace {

// ---------------------------------------------------------------------------------------- writing

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : out_(out) {}

  template <std::unsigned_integral T>
  void put(T value) {
    const std::size_t at = out_.size();
    out_.resize(at + sizeof(T));
    boost::endian::native_to_little_inplace(value);
    std::memcpy(out_.data() + at, &value, sizeof(T));
  }
  void put_bytes(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    out_.insert(out_.end(), bytes, bytes + size);
  }
  void put_ranges(std::span<const FrameRange> ranges) {
    put(static_cast<std::uint32_t>(ranges.size()));
    for (const FrameRange& range : ranges) {
      put(range.first.number());
      put(static_cast<std::uint32_t>(range.count));
    }
  }

 private:
  std::vector<std::byte>& out_;
};

struct PayloadWriter {
  Writer& w;

  Type operator()(const Unknown&) const { return Type{}; }
  Type operator()(const Hello& m) const {
    w.put(m.features);
    w.put_bytes(m.boot_id.data(), m.boot_id.size());
    w.put(m.page_size);
    w.put(static_cast<std::uint32_t>(m.ram.size()));
    for (const FrameRange& range : m.ram) {  // RAM segments may be larger than 2^32 frames
      w.put(range.first.number());
      w.put(range.count);
    }
    return Type::hello;
  }
  Type operator()(const LimitsMessage& m) const {
    w.put(m.limits.target.count());
    w.put(m.limits.floor.count());
    w.put(m.epoch);
    return Type::limits;
  }
  Type operator()(const Report& m) const {
    w.put_ranges(m.ranges);
    return Type::report;
  }
  Type operator()(const Ack& m) const {
    w.put(m.batch);
    w.put(static_cast<std::uint32_t>(m.outcomes.size()));
    for (const RangeOutcome& o : m.outcomes) {
      // A report names at most 16384 frames, so every count fits 16 bits.
      w.put(static_cast<std::uint16_t>(o.discarded));
      w.put(static_cast<std::uint16_t>(o.not_zero));
      w.put(static_cast<std::uint16_t>(o.refused));
      w.put(static_cast<std::uint16_t>(o.failed));
    }
    return Type::ack;
  }
  Type operator()(const Deflated& m) const {
    w.put(m.resident.count());
    w.put_ranges(m.ranges);
    return Type::deflated;
  }
  Type operator()(const Stats& m) const {
    w.put(static_cast<std::uint32_t>(m.values.size()));
    for (const auto& [key, value] : m.values) {
      w.put(static_cast<std::uint16_t>(key));
      w.put(value);
    }
    return Type::stats;
  }
  Type operator()(const Purge& m) const {
    w.put(m.amount.count());
    return Type::purge;
  }
  Type operator()(const CacheOrder& m) const {
    w.put(static_cast<std::uint32_t>(m.mode));
    return Type::cache;
  }
  Type operator()(const Populate& m) const {
    w.put_ranges(m.ranges);
    return Type::populate;
  }
  Type operator()(const Populated& m) const {
    w.put(m.request);
    w.put(static_cast<std::uint32_t>(m.backed.size()));
    for (const std::uint32_t count : m.backed) {
      w.put(count);
    }
    return Type::populated;
  }
  Type operator()(const HostState& m) const {
    w.put(m.absent.count());
    return Type::host;
  }
  Type operator()(const ErrorMessage& m) const {
    w.put(static_cast<std::uint32_t>(m.code));
    const std::size_t length = std::min(m.text.size(), kMaxErrorText);
    w.put(static_cast<std::uint32_t>(length));
    w.put_bytes(m.text.data(), length);
    return Type::error;
  }
};

// ---------------------------------------------------------------------------------------- reading

/// Reads from one payload; a read past its end makes ok() false and yields zeros from then on.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> data) : data_(data) {}

  template <std::unsigned_integral T>
  T get() {
    T value = 0;
    if (data_.size() < sizeof(T)) {
      ok_ = false;
      data_ = {};
      return 0;
    }
    std::memcpy(&value, data_.data(), sizeof(T));
    data_ = data_.subspan(sizeof(T));
    return boost::endian::little_to_native(value);
  }
  void get_bytes(void* out, std::size_t size) {
    if (size == 0) {
      return;  // memcpy does not take a null source, even for nothing
    }
    if (data_.size() < size) {
      ok_ = false;
      data_ = {};
      return;
    }
    std::memcpy(out, data_.data(), size);
    data_ = data_.subspan(size);
  }
  /// A count of `item_size`-byte items that must fill exactly the rest of the payload.
  std::size_t get_count(std::size_t item_size, std::size_t most) {
    const auto count = get<std::uint32_t>();
    if (count > most || data_.size() != count * item_size) {
      ok_ = false;
      return 0;
    }
    return count;
  }
  std::vector<FrameRange> get_ranges() {
    std::vector<FrameRange> ranges(get_count(12, kMaxRanges));
    for (FrameRange& range : ranges) {
      range.first = GuestFrame(get<std::uint64_t>());
      range.count = get<std::uint32_t>();
    }
    return ranges;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool finished() const { return ok_ && data_.empty(); }

 private:
  std::span<const std::byte> data_;
  bool ok_ = true;
};

Hello read_hello(Reader& r) {
  Hello m;
  m.features = r.get<std::uint64_t>();
  r.get_bytes(m.boot_id.data(), m.boot_id.size());
  m.page_size = r.get<std::uint32_t>();
  m.ram.resize(r.get_count(16, kMaxRamRanges));
  for (FrameRange& range : m.ram) {
    range.first = GuestFrame(r.get<std::uint64_t>());
    range.count = r.get<std::uint64_t>();
  }
  return m;
}

Ack read_ack(Reader& r) {
  Ack m;
  m.batch = r.get<std::uint64_t>();
  m.outcomes.resize(r.get_count(8, kMaxRanges));
  for (RangeOutcome& o : m.outcomes) {
    o.discarded = r.get<std::uint16_t>();
    o.not_zero = r.get<std::uint16_t>();
    o.refused = r.get<std::uint16_t>();
    o.failed = r.get<std::uint16_t>();
  }
  return m;
}

Populated read_populated(Reader& r) {
  Populated m;
  m.request = r.get<std::uint64_t>();
  m.backed.resize(r.get_count(4, kMaxRanges));
  for (std::uint32_t& count : m.backed) {
    count = r.get<std::uint32_t>();
  }
  return m;
}

Stats read_stats(Reader& r) {
  Stats m;
  m.values.resize(r.get_count(10, kMaxRanges));
  for (auto& [key, value] : m.values) {
    key = static_cast<StatKey>(r.get<std::uint16_t>());
    value = r.get<std::uint64_t>();
  }
  return m;
}

ErrorMessage read_error(Reader& r) {
  ErrorMessage m;
  m.code = static_cast<ErrorCode>(r.get<std::uint32_t>());
  m.text.resize(r.get_count(1, kMaxErrorText));
  r.get_bytes(m.text.data(), m.text.size());
  // What a peer says goes to logs and terminals: nothing but printable ASCII.
  std::replace_if(
      m.text.begin(), m.text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return m;
}

/// What one message makes the host work on.
std::uint64_t frames_to_work_on(const Message& message) {
  if (const auto* report = std::get_if<Report>(&message)) {
    return total_frames(report->ranges);
  }
  if (const auto* populate = std::get_if<Populate>(&message)) {
    return total_frames(populate->ranges);
  }
  return 0;
}

/// The message, or nothing where the payload does not fit its type.
std::optional<Message> read_payload(Type type, std::span<const std::byte> payload) {
  Reader r(payload);
  Message message;
  switch (type) {
    case Type::hello:
      message = read_hello(r);
      break;
    case Type::limits: {
      LimitsMessage m;
      m.limits.target = Bytes(r.get<std::uint64_t>());
      m.limits.floor = Bytes(r.get<std::uint64_t>());
      m.epoch = r.get<std::uint64_t>();
      message = m;
      break;
    }
    case Type::report:
      message = Report{r.get_ranges()};
      break;
    case Type::ack:
      message = read_ack(r);
      break;
    case Type::deflated: {
      Deflated m;
      m.resident = Bytes(r.get<std::uint64_t>());
      m.ranges = r.get_ranges();
      message = std::move(m);
      break;
    }
    case Type::stats:
      message = read_stats(r);
      break;
    case Type::purge:
      message = Purge{Bytes(r.get<std::uint64_t>())};
      break;
    case Type::error:
      message = read_error(r);
      break;
    case Type::cache: {
      const auto mode = r.get<std::uint32_t>();
      // A newer host may know more modes: like an unknown type, that is skipped.
      if (mode <= static_cast<std::uint32_t>(kLastCacheMode)) {
        message = CacheOrder{static_cast<CacheMode>(mode)};
      }
      break;
    }
    case Type::populate:
      message = Populate{r.get_ranges()};
      break;
    case Type::populated:
      message = read_populated(r);
      break;
    case Type::host:
      message = HostState{Bytes(r.get<std::uint64_t>())};
      break;
    default:
      return Unknown{};
  }
  if (!r.finished()) {
    return std::nullopt;
  }
  return message;
}

struct RawHeader {
  bool magic_ok = false;
  std::uint16_t version = 0;
  Header header;
};

RawHeader read_header(std::span<const std::byte> bytes) {
  RawHeader raw;
  std::array<char, 8> magic{};
  Reader r(bytes);
  r.get_bytes(magic.data(), magic.size());
  raw.magic_ok = magic == kMagic;
  raw.version = r.get<std::uint16_t>();
  raw.header.type = static_cast<Type>(r.get<std::uint16_t>());
  raw.header.length = r.get<std::uint32_t>();
  raw.header.from = r.get<std::uint64_t>();
  raw.header.to = r.get<std::uint64_t>();
  raw.header.sequence = r.get<std::uint64_t>();
  return raw;
}

}  // namespace

std::optional<std::uint64_t> Stats::find(StatKey key) const {
  for (const auto& [k, value] : values) {
    if (k == key) {
      return value;
    }
  }
  return std::nullopt;
}

void encode(Header header, const Message& message, std::vector<std::byte>& out) {
  Writer w(out);
  const std::size_t start = out.size();
  w.put_bytes(kMagic.data(), kMagic.size());
  w.put(kVersion);
  w.put(std::uint16_t{0});  // type and length follow when the payload is known
  w.put(std::uint32_t{0});
  w.put(header.from);
  w.put(header.to);
  w.put(header.sequence);
  const Type type = std::visit(PayloadWriter{w}, message);
  const auto type_le = boost::endian::native_to_little(static_cast<std::uint16_t>(type));
  const auto length_le =
      boost::endian::native_to_little(static_cast<std::uint32_t>(out.size() - start - kHeaderSize));
  std::memcpy(out.data() + start + 10, &type_le, sizeof type_le);
  std::memcpy(out.data() + start + 12, &length_le, sizeof length_le);
}

Decoder::Decoder() { buffer_.reserve(kHeaderSize + kMaxPayload); }

std::size_t Decoder::feed(std::span<const std::byte> input) {
  if (taken_ > 0) {  // here and not in next(), which would move the rest once for every frame
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(taken_));
    taken_ = 0;
  }
  const std::size_t room = kHeaderSize + kMaxPayload - buffer_.size();
  const std::size_t take = std::min(room, input.size());
  buffer_.insert(buffer_.end(), input.begin(), input.begin() + static_cast<std::ptrdiff_t>(take));
  return take;
}

void Decoder::restart() {
  skipped_ += pending().size();
  buffer_.clear();
  taken_ = 0;
  seeking_ = true;
  failed_.reset();
}

void Decoder::seek_hello() {
  const std::span<const std::byte> bytes = pending();
  std::size_t at = 0;
  while (true) {
    const auto found = std::search(
        bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end(), kMagic.begin(), kMagic.end(),
        [](std::byte b, char c) { return b == static_cast<std::byte>(c); });
    if (found == bytes.end()) {
      // A magic cut in two may be at the end.
      at = bytes.size() < kMagic.size() ? 0 : bytes.size() - (kMagic.size() - 1);
      break;
    }
    at = static_cast<std::size_t>(found - bytes.begin());
    const std::span<const std::byte> rest = bytes.subspan(at);
    if (rest.size() < kHeaderSize) {
      break;
    }
    const Header header = read_header(rest.first(kHeaderSize)).header;
    if (header.type == Type::hello && header.length <= kMaxPayload) {
      seeking_ = false;
      break;
    }
    ++at;
  }
  skipped_ += at;
  taken_ += at;
}

std::optional<std::variant<Frame, DecodeError>> Decoder::next() {
  if (failed_) {
    return *failed_;
  }
  if (seeking_) {
    seek_hello();
  }
  const std::span<const std::byte> bytes = pending();
  if (seeking_ || bytes.size() < kHeaderSize) {
    return std::nullopt;
  }
  const auto fail = [this](ErrorCode code, std::string text) {
    failed_ = DecodeError{code, std::move(text)};
    return *failed_;
  };
  const RawHeader raw = read_header(bytes.first(kHeaderSize));
  const Header& header = raw.header;
  if (!raw.magic_ok) {
    return fail(ErrorCode::malformed, "bytes that are not a frame (no magic where one was due)");
  }
  if (raw.version != kVersion) {
    return fail(ErrorCode::version, "protocol version " + std::to_string(raw.version) +
                                        "; this side speaks " + std::to_string(kVersion) +
                                        ": install matching balloonfs and fileballoond");
  }
  const auto type = static_cast<std::uint16_t>(header.type);
  if (header.length > kMaxPayload) {
    return fail(ErrorCode::malformed, "a frame of type " + std::to_string(type) + " with " +
                                          std::to_string(header.length) + " bytes; the most is " +
                                          std::to_string(kMaxPayload));
  }
  const std::size_t whole = kHeaderSize + header.length;
  if (bytes.size() < whole) {
    return std::nullopt;
  }
  std::optional<Message> message =
      read_payload(header.type, bytes.subspan(kHeaderSize, header.length));
  if (const std::uint64_t frames = message ? frames_to_work_on(*message) : 0;
      frames > kMaxFramesPerReport) {
    return fail(ErrorCode::malformed, "a report or request of " + std::to_string(frames) +
                                          " frames; the most is " +
                                          std::to_string(kMaxFramesPerReport));
  }
  if (!message) {
    return fail(ErrorCode::malformed, "a frame of type " + std::to_string(type) + " whose " +
                                          std::to_string(header.length) +
                                          " bytes do not hold what it announces");
  }
  Frame frame{header, std::move(*message)};
  taken_ += whole;
  return frame;
}

}  // namespace fileballoon::wire
