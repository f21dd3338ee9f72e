// The decoder against streams that are cut, doubled, stale or hostile. What it must never do: read
// past what it was given, hold more than a frame, or take garbage for a message.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "fileballoon/wire.h"

namespace fileballoon::wire {
namespace {

using Stream = std::vector<std::byte>;

Header header(std::uint64_t sequence) {
  Header h;
  h.from = 1;
  h.to = 2;
  h.sequence = sequence;
  return h;
}

Stream hello_stream() {
  Stream bytes;
  encode(header(0), Hello{}, bytes);
  return bytes;
}

template <class T>
void overwrite(Stream& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

/// Feeds everything and collects what comes out until nothing or an error does.
struct Outcome {
  std::vector<Frame> frames;
  std::optional<DecodeError> error;
};
Outcome decode(Decoder& decoder, std::span<const std::byte> bytes, std::size_t step = ~0ULL) {
  Outcome outcome;
  while (true) {
    const std::size_t taken = decoder.feed(bytes.first(std::min(step, bytes.size())));
    bytes = bytes.subspan(taken);
    while (const auto item = decoder.next()) {
      if (const auto* error = std::get_if<DecodeError>(&*item)) {
        outcome.error = *error;
        return outcome;
      }
      outcome.frames.push_back(std::get<Frame>(*item));
    }
    if (bytes.empty()) {
      return outcome;
    }
  }
}
Outcome decode(std::span<const std::byte> bytes, std::size_t step = ~0ULL) {
  Decoder decoder;
  return decode(decoder, bytes, step);
}

/// A HELLO and then one frame of `type` whose payload is `payload`, with an honest length.
Stream with_payload(std::uint16_t type, const Stream& payload) {
  Stream bytes = hello_stream();
  const std::size_t start = bytes.size();
  encode(header(1), Unknown{}, bytes);
  overwrite(bytes, start + 10, type);
  overwrite(bytes, start + 12, static_cast<std::uint32_t>(payload.size()));
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

TEST(Decoder, AByteAtATimeGivesTheSameFrames) {
  Stream bytes = hello_stream();
  for (std::uint64_t i = 1; i <= 5; ++i) {
    encode(header(i), Report{{{GuestFrame(i), 1}, {GuestFrame(100 * i), 2}}}, bytes);
  }
  for (const std::size_t step : {1UL, 2UL, 39UL, 41UL, 4096UL}) {
    const Outcome outcome = decode(bytes, step);
    ASSERT_EQ(outcome.frames.size(), 6U) << step;
    EXPECT_EQ(outcome.frames[5].header.sequence, 5U);
    EXPECT_EQ(std::get<Report>(outcome.frames[5].message).ranges[1].first, GuestFrame(500));
  }
}

TEST(Decoder, SkipsTheTailOfAnEarlierReader) {
  Stream stale;
  encode(header(9), Report{{{GuestFrame(1), 1}}}, stale);
  Stream bytes(stale.begin() + 20, stale.end());          // a frame cut in the middle
  bytes.insert(bytes.end(), stale.begin(), stale.end());  // a whole one that is no HELLO
  const std::size_t skipped = bytes.size();
  const Stream hello = hello_stream();
  bytes.insert(bytes.end(), hello.begin(), hello.end());
  for (const std::size_t step : {1UL, 7UL, 100000UL}) {
    Decoder decoder;
    const Outcome outcome = decode(decoder, bytes, step);
    ASSERT_EQ(outcome.frames.size(), 1U) << step;
    EXPECT_EQ(outcome.frames[0].header.type, Type::hello);
    EXPECT_EQ(decoder.skipped(), skipped);
  }
}

TEST(Decoder, FindsAHelloThatStartsInsideAFalseMagic) {
  const char prefix[] = "FBALLOFBALLOONFBALL";
  Stream bytes;
  for (const char* c = prefix; *c != '\0'; ++c) {
    bytes.push_back(static_cast<std::byte>(*c));
  }
  const Stream hello = hello_stream();
  bytes.insert(bytes.end(), hello.begin(), hello.end());
  EXPECT_EQ(decode(bytes).frames.size(), 1U);
  EXPECT_EQ(decode(bytes, 1).frames.size(), 1U);
}

TEST(Decoder, EndlessGarbageIsSkippedInBoundedMemory) {
  std::mt19937_64 random(1);
  Decoder decoder;
  Stream block(8192);
  std::uint64_t fed = 0;
  for (int i = 0; i < 100; ++i) {
    for (std::byte& b : block) {
      b = static_cast<std::byte>(random());
    }
    fed += block.size();
    EXPECT_TRUE(decode(decoder, block).frames.empty());
  }
  EXPECT_GE(decoder.skipped(), fed - kHeaderSize);
}

TEST(Decoder, NeverHoldsMoreThanOneFrameOfTheLargestSize) {
  Decoder decoder;
  const Stream flood(10 * kMaxPayload);
  EXPECT_EQ(decoder.feed(flood), kHeaderSize + kMaxPayload);
  EXPECT_EQ(decoder.feed(flood), 0U) << "the caller must take frames before it feeds more";
}

TEST(Decoder, GarbageBetweenFramesEndsTheStream) {
  Stream bytes = hello_stream();
  bytes.resize(bytes.size() + kHeaderSize);
  const Outcome outcome = decode(bytes);
  EXPECT_EQ(outcome.frames.size(), 1U);
  ASSERT_TRUE(outcome.error);
  EXPECT_EQ(outcome.error->code, ErrorCode::malformed);
}

TEST(Decoder, AnotherVersionIsNamedWithTheRemedy) {
  Stream bytes = hello_stream();
  overwrite(bytes, 8, std::uint16_t{2});
  const Outcome outcome = decode(bytes);
  ASSERT_TRUE(outcome.error);
  EXPECT_EQ(outcome.error->code, ErrorCode::version);
  EXPECT_NE(outcome.error->text.find("version 2"), std::string::npos);
  EXPECT_NE(outcome.error->text.find("install matching"), std::string::npos);
}

TEST(Decoder, AnOversizedLengthIsRefusedAtOnce) {
  Stream bytes = hello_stream();
  const std::size_t start = bytes.size();
  encode(header(1), Purge{}, bytes);
  for (const std::uint32_t length : {std::uint32_t{kMaxPayload + 1}, 0xffffffffU}) {
    overwrite(bytes, start + 12, length);
    const Outcome outcome = decode(bytes);
    ASSERT_TRUE(outcome.error) << "waiting for " << length << " bytes would be waiting for ever";
    EXPECT_NE(outcome.error->text.find(std::to_string(length)), std::string::npos);
  }
}

TEST(Decoder, CountsThatDoNotMatchTheLengthAreMalformed) {
  const auto with_count = [](std::uint16_t type, std::size_t prefix, std::uint32_t count,
                             std::size_t rest) {
    Stream payload(prefix + 4 + rest);
    overwrite(payload, prefix, count);
    return decode(with_payload(type, payload));
  };
  struct Case {
    std::uint16_t type;
    std::size_t prefix;
    std::size_t item;
  };
  // REPORT, ACK, DEFLATED, STATS, HELLO: bytes before the count, bytes of an item.
  for (const Case c :
       {Case{3, 0, 12}, Case{4, 8, 8}, Case{5, 8, 12}, Case{6, 0, 10}, Case{1, 28, 16}}) {
    EXPECT_FALSE(with_count(c.type, c.prefix, 2, 2 * c.item).error) << c.type;
    EXPECT_TRUE(with_count(c.type, c.prefix, 2, 2 * c.item - 1).error) << c.type;
    EXPECT_TRUE(with_count(c.type, c.prefix, 2, 2 * c.item + 1).error) << c.type;
    EXPECT_TRUE(with_count(c.type, c.prefix, 0, 1).error) << c.type;
    EXPECT_TRUE(with_count(c.type, c.prefix, 0xffffffff, c.item).error) << c.type;
    // A product that would be right modulo 2^32.
    EXPECT_TRUE(with_count(c.type, c.prefix, 0x40000000, 0).error) << c.type;
  }
}

TEST(Decoder, TruncatedPayloadsOfEveryTypeAreMalformed) {
  for (std::uint16_t type = 1; type <= 9; ++type) {
    for (const std::size_t size : {0UL, 1UL, 3UL, 7UL}) {
      const Outcome outcome = decode(with_payload(type, Stream(size)));
      ASSERT_TRUE(outcome.error) << "type " << type << ", " << size << " bytes";
      EXPECT_NE(outcome.error->text.find("type " + std::to_string(type)), std::string::npos);
    }
  }
}

TEST(Decoder, TooManyRangesAreMalformedEvenWhenTheyFit) {
  Stream payload(4 + 12 * (kMaxRanges + 1));
  overwrite(payload, 0, static_cast<std::uint32_t>(kMaxRanges + 1));
  EXPECT_TRUE(decode(with_payload(3, payload)).error);
}

TEST(Decoder, AReportAboveTheFrameBoundSaysSo) {
  Stream bytes = hello_stream();
  const std::size_t start = bytes.size();
  encode(header(1), Report{{{GuestFrame(0), 16383}, {GuestFrame(20000), 1}}}, bytes);
  EXPECT_FALSE(decode(bytes).error);
  bytes.resize(start);
  encode(header(1), Report{{{GuestFrame(0), 16383}, {GuestFrame(20000), 2}}}, bytes);
  const Outcome outcome = decode(bytes);
  ASSERT_TRUE(outcome.error) << "the counts of its ACK could not be told";
  EXPECT_NE(outcome.error->text.find("16385 frames; the most is 16384"), std::string::npos);
}

TEST(Decoder, UnknownTypesAreDeliveredAsUnknown) {
  for (const std::uint16_t type : {0, 1000, 65535}) {
    const Outcome outcome = decode(with_payload(type, Stream(100)));
    ASSERT_EQ(outcome.frames.size(), 2U);
    EXPECT_TRUE(std::holds_alternative<Unknown>(outcome.frames[1].message));
    EXPECT_EQ(static_cast<std::uint16_t>(outcome.frames[1].header.type), type);
  }
}

TEST(Decoder, StaysInErrorUntilRestartedThenFindsTheNextHello) {
  Decoder decoder;
  Stream bytes = with_payload(7, Stream(3));
  ASSERT_TRUE(decode(decoder, bytes).error);
  EXPECT_TRUE(decode(decoder, hello_stream()).error);
  decoder.restart();
  const Outcome outcome = decode(decoder, hello_stream());
  EXPECT_FALSE(outcome.error);
  EXPECT_EQ(outcome.frames.size(), 1U);
}

TEST(Decoder, ManyFramesThroughAFullBuffer) {
  Stream bytes = hello_stream();
  for (std::uint64_t i = 1; i <= 5000; ++i) {
    encode(header(i), Purge{Bytes(i)}, bytes);
  }
  const Outcome outcome = decode(bytes);
  ASSERT_EQ(outcome.frames.size(), 5001U);
  for (std::uint64_t i = 1; i <= 5000; ++i) {
    ASSERT_EQ(std::get<Purge>(outcome.frames[i].message).amount, Bytes(i));
  }
}

}  // namespace
}  // namespace fileballoon::wire
