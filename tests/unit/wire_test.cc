// The bytes of the protocol: what one side encodes the other must read as the same message, in
// exactly the layout of docs/protocol.md, or guests and hosts of different builds stop talking.
#include "fileballoon/wire.h"

#include <gtest/gtest.h>

#include <cstring>

namespace fileballoon::wire {
namespace {

constexpr SessionId kFrom = 0x1122334455667788;
constexpr SessionId kTo = 0x99aabbccddeeff00;

Header header(std::uint64_t sequence = 5) {
  Header h;
  h.from = kFrom;
  h.to = kTo;
  h.sequence = sequence;
  return h;
}

/// Encodes and decodes; a HELLO goes before, since a decoder starts by looking for one.
Frame round_trip(const Message& message) {
  std::vector<std::byte> bytes;
  encode(header(0), Hello{}, bytes);
  encode(header(), message, bytes);
  Decoder decoder;
  EXPECT_EQ(decoder.feed(bytes), bytes.size());
  (void)decoder.next();
  const auto item = decoder.next();
  EXPECT_TRUE(item.has_value() && std::holds_alternative<Frame>(*item));
  return item && std::holds_alternative<Frame>(*item) ? std::get<Frame>(*item) : Frame{};
}

TEST(Wire, AFrameHasTheDocumentedBytes) {
  std::vector<std::byte> bytes;
  encode(header(7), Purge{Bytes(0x0102030405060708)}, bytes);
  const unsigned char expected[] = {
      'F',  'B',  'A',  'L',  'L',  'O',  'O',  'N',   // magic
      1,    0,                                         // version
      7,    0,                                         // type PURGE
      8,    0,    0,    0,                             // length
      0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,  // from
      0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99,  // to
      7,    0,    0,    0,    0,    0,    0,    0,     // sequence
      0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,  // amount
  };
  ASSERT_EQ(bytes.size(), sizeof expected);
  EXPECT_EQ(std::memcmp(bytes.data(), expected, sizeof expected), 0);
}

TEST(Wire, TheHeaderTravels) {
  const Frame frame = round_trip(Purge{Bytes(1)});
  EXPECT_EQ(frame.header.type, Type::purge);
  EXPECT_EQ(frame.header.length, 8U);
  EXPECT_EQ(frame.header.from, kFrom);
  EXPECT_EQ(frame.header.to, kTo);
  EXPECT_EQ(frame.header.sequence, 5U);
}

TEST(Wire, HelloRoundTrip) {
  Hello hello;
  hello.features = 0xf0f0;
  hello.boot_id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  hello.page_size = 16384;
  hello.ram = {{GuestFrame(0), 1ULL << 33}, {GuestFrame(1ULL << 40), 5}};
  const auto got = std::get<Hello>(round_trip(hello).message);
  EXPECT_EQ(got.features, hello.features);
  EXPECT_EQ(got.boot_id, hello.boot_id);
  EXPECT_EQ(got.page_size, hello.page_size);
  EXPECT_EQ(got.ram, hello.ram);
}

TEST(Wire, LimitsRoundTrip) {
  const LimitsMessage limits{{Bytes::gib(3), Bytes::mib(5)}, 42};
  const auto got = std::get<LimitsMessage>(round_trip(limits).message);
  EXPECT_EQ(got.limits, limits.limits);
  EXPECT_EQ(got.epoch, 42U);
}

TEST(Wire, ReportRoundTripUpToItsBounds) {
  Report report;
  EXPECT_TRUE(std::get<Report>(round_trip(report).message).ranges.empty());
  for (std::uint64_t i = 0; i < kMaxRanges; ++i) {
    report.ranges.push_back({GuestFrame(i * 1000), 4});
  }
  EXPECT_EQ(std::get<Report>(round_trip(report).message).ranges, report.ranges);
}

TEST(Wire, AckRoundTripUpToItsBounds) {
  Ack ack;
  ack.batch = ~0ULL;
  ack.outcomes.assign(kMaxRanges, {16384, 1, 2, 3});
  const auto got = std::get<Ack>(round_trip(ack).message);
  EXPECT_EQ(got.batch, ack.batch);
  EXPECT_EQ(got.outcomes, ack.outcomes);
}

TEST(Wire, DeflatedRoundTrip) {
  const Deflated deflated{Bytes::mib(77), {{GuestFrame(9), 0xffffffff}}};
  const auto got = std::get<Deflated>(round_trip(deflated).message);
  EXPECT_EQ(got.resident, deflated.resident);
  EXPECT_EQ(got.ranges, deflated.ranges);
}

TEST(Wire, StatsKeepKeysThatAreNotKnown) {
  const Stats stats{{{StatKey::resident_pages, 5}, {static_cast<StatKey>(60000), 6}}};
  const auto got = std::get<Stats>(round_trip(stats).message);
  EXPECT_EQ(got.values, stats.values);
  EXPECT_EQ(got.find(StatKey::resident_pages), 5U);
  EXPECT_EQ(got.find(StatKey::oom_kills), std::nullopt);
}

TEST(Wire, CacheOrderRoundTrip) {
  for (int i = 0; i <= static_cast<int>(kLastCacheMode); ++i) {
    const CacheOrder order{static_cast<CacheMode>(i)};
    const Frame frame = round_trip(order);
    EXPECT_EQ(frame.header.type, Type::cache);
    EXPECT_EQ(std::get<CacheOrder>(frame.message).mode, order.mode);
  }
}

TEST(Wire, ACacheModeOfALaterVersionIsSkipped) {
  const Frame frame = round_trip(CacheOrder{static_cast<CacheMode>(200)});
  EXPECT_EQ(frame.header.type, Type::cache);
  EXPECT_TRUE(std::holds_alternative<Unknown>(frame.message));
}

TEST(Wire, PopulateAndItsAnswerRoundTripUpToTheirBounds) {
  Populate request;
  Populated answer{~0ULL, {}};
  for (std::uint64_t i = 0; i < kMaxRanges; ++i) {
    request.ranges.push_back({GuestFrame(i * 1000), 4});
    answer.backed.push_back(static_cast<std::uint32_t>(i));
  }
  EXPECT_EQ(std::get<Populate>(round_trip(request).message).ranges, request.ranges);
  const auto got = std::get<Populated>(round_trip(answer).message);
  EXPECT_EQ(got.request, answer.request);
  EXPECT_EQ(got.backed, answer.backed);
  // What the host works on at a time stays bounded, as for a report.
  request.ranges.push_back({GuestFrame(1ULL << 40), 1});
  request.ranges.erase(request.ranges.begin());
  request.ranges.back().count = kMaxFramesPerReport;
  std::vector<std::byte> bytes;
  encode(header(0), Hello{}, bytes);
  encode(header(), request, bytes);
  Decoder decoder;
  EXPECT_EQ(decoder.feed(bytes), bytes.size());
  (void)decoder.next();
  EXPECT_TRUE(std::holds_alternative<DecodeError>(*decoder.next()));
}

TEST(Wire, HostStateRoundTrip) {
  EXPECT_EQ(std::get<HostState>(round_trip(HostState{Bytes(12345)}).message).absent, Bytes(12345));
}

TEST(Wire, ErrorTextIsCutAndMadePrintable) {
  const ErrorMessage error{ErrorCode::busy, "a\x1b[2J\n" + std::string(1000, 'x')};
  const auto got = std::get<ErrorMessage>(round_trip(error).message);
  EXPECT_EQ(got.code, ErrorCode::busy);
  EXPECT_EQ(got.text.size(), kMaxErrorText);
  EXPECT_EQ(got.text.substr(0, 7), "a?[2J?x") << "nothing that a terminal would obey";
  EXPECT_EQ(std::get<ErrorMessage>(round_trip(ErrorMessage{}).message).text, "");
}

TEST(Wire, EncodeAppends) {
  std::vector<std::byte> bytes(3);
  encode(header(), Purge{}, bytes);
  EXPECT_EQ(bytes.size(), 3 + kHeaderSize + 8);
}

}  // namespace
}  // namespace fileballoon::wire
