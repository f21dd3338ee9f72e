// The daemon's half of the protocol against a scripted guest. What a user would lose: a hostile or
// broken guest could make the daemon discard what it must not, answer what is not done, or grow
// without bound.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "host/guest_session.h"
#include "host/report.h"

namespace fileballoon::host {
namespace {

using ::testing::HasSubstr;

constexpr GuestSession::BootId kBoot = {1};

RamLayout one_gib() {
  // RAM with the hole of a PC, as the daemon makes it.
  return RamLayout::create({{{GuestFrame(0), 160}, HostOffset(0), 0},
                            {{GuestFrame(256), 262144 - 256}, HostOffset(1 << 20), 0}})
      .value();
}

/// Hands reports out and lets the test complete them when it likes.
class Recorder : public GuestSession::Delegate {
 public:
  void on_established(const wire::Hello&, bool guest_rebooted) override {
    ++established;
    rebooted += guest_rebooted ? 1 : 0;
  }
  void on_session_over() override { ++over; }
  void on_report(GuestSession::Batch batch, wire::Report report) override {
    reports.emplace_back(batch, std::move(report));
  }
  void on_populate(GuestSession::Batch batch, wire::Populate request) override {
    populates.emplace_back(batch, std::move(request));
  }
  void on_stats(const wire::Stats& s) override { stats = s; }
  void on_deflated(const wire::Deflated& d) override { deflated = d; }

  int established = 0;
  int over = 0;
  int rebooted = 0;
  std::deque<std::pair<GuestSession::Batch, wire::Report>> reports;
  std::deque<std::pair<GuestSession::Batch, wire::Populate>> populates;
  wire::Stats stats;
  wire::Deflated deflated;
};

/// A host session and a guest that says what the test wants.
class HostSession : public ::testing::Test {
 protected:
  HostSession() : host([this] { return next_id_++; }, layout, recorder), guest(guest_ids()) {}

  static Session::IdSource guest_ids() {
    return [id = wire::SessionId{1000}]() mutable { return id++; };
  }

  /// Frames that the host has sent since the last call.
  std::vector<wire::Frame> from_host() {
    std::vector<wire::Frame> frames;
    const auto bytes = host.take_output();
    std::span<const std::byte> rest(bytes);
    while (true) {
      rest = rest.subspan(decoder_.feed(rest));
      auto next = decoder_.next();
      if (!next) {
        break;
      }
      frames.push_back(std::move(std::get<wire::Frame>(*next)));
    }
    return frames;
  }
  template <class T>
  static std::vector<T> only(const std::vector<wire::Frame>& frames) {
    std::vector<T> found;
    for (const wire::Frame& frame : frames) {
      if (const auto* message = std::get_if<T>(&frame.message)) {
        found.push_back(*message);
      }
    }
    return found;
  }

  std::size_t send_bytes(std::span<const std::byte> bytes) { return host.receive(bytes); }
  void send(wire::Header header, const wire::Message& message) {
    std::vector<std::byte> bytes;
    wire::encode(header, message, bytes);
    EXPECT_EQ(send_bytes(bytes), bytes.size());
  }
  void send(const wire::Message& message) { send(guest.next_header(), message); }

  wire::Hello hello() const {
    wire::Hello message;
    message.boot_id = boot;
    message.ram = {{GuestFrame(1), 158}, {GuestFrame(256), 262144 - 256}};
    return message;
  }
  /// Until both sides are established or nothing moves.
  std::vector<wire::Frame> shake_hands() {
    std::vector<wire::Frame> other;
    send(guest.hello(), hello());
    for (int round = 0; round < 4; ++round) {
      for (wire::Frame& frame : from_host()) {
        const auto verdict = guest.receive(frame.header);
        if (verdict == Session::Verdict::reply_hello ||
            (verdict == Session::Verdict::established && guest.must_reply())) {
          send(guest.hello(), hello());
        } else if (verdict == Session::Verdict::deliver) {
          other.push_back(std::move(frame));
        }
      }
    }
    return other;
  }
  void connect() {
    host.open();
    guest.reset();
    shake_hands();
    ASSERT_TRUE(host.is_established());
    ASSERT_TRUE(guest.is_established());
  }
  void expect_failure(wire::ErrorCode code, const std::string& text) {
    ASSERT_TRUE(host.failure());
    EXPECT_THAT(*host.failure(), HasSubstr(text));
    const auto errors = only<wire::ErrorMessage>(from_host());
    ASSERT_EQ(errors.size(), 1U) << "the guest must be told";
    EXPECT_EQ(errors[0].code, code);
    EXPECT_FALSE(host.wants_input());
  }

  RamLayout layout = one_gib();
  Recorder recorder;
  GuestSession host;
  Session guest;
  GuestSession::BootId boot = kBoot;

 private:
  wire::SessionId next_id_ = 1;
  wire::Decoder decoder_;
};

TEST_F(HostSession, HandshakeThenLimitsThenAcksInOrder) {
  host.set_limits({{Bytes::mib(600), Bytes::mib(10)}, 3});
  host.open();
  const auto frames = shake_hands();
  const auto limits = only<wire::LimitsMessage>(frames);
  ASSERT_EQ(limits.size(), 1U);
  EXPECT_EQ(limits[0].limits.target, Bytes::mib(600));
  EXPECT_EQ(limits[0].limits.floor, Bytes::mib(10));
  EXPECT_EQ(recorder.established, 1);

  send(wire::Report{{{GuestFrame(300), 2}}});
  ASSERT_EQ(recorder.reports.size(), 1U);
  EXPECT_TRUE(only<wire::Ack>(from_host()).empty()) << "an ACK before the work is done";
  host.complete(recorder.reports[0].first, {{2, 0, 0, 0}});
  const auto acks = only<wire::Ack>(from_host());
  ASSERT_EQ(acks.size(), 1U);
  EXPECT_EQ(acks[0].batch, 1U);
  EXPECT_EQ(acks[0].outcomes[0].discarded, 2U);
}

TEST_F(HostSession, OnlyTheLatestLimitsAreSent) {
  connect();
  for (int i = 1; i <= 1000; ++i) {
    host.set_limits({{Bytes::mib(static_cast<std::uint64_t>(i)), Bytes(0)}, 0});
  }
  const auto limits = only<wire::LimitsMessage>(from_host());
  ASSERT_EQ(limits.size(), 1U);
  EXPECT_EQ(limits[0].limits.target, Bytes::mib(1000));
}

TEST_F(HostSession, GarbageBeforeHelloIsSkipped) {
  host.open();
  std::vector<std::byte> garbage(200'000, std::byte{0x5a});
  EXPECT_EQ(send_bytes(garbage), garbage.size());
  shake_hands();
  EXPECT_TRUE(host.is_established());
}

TEST_F(HostSession, GarbageInASessionEndsItWithAnError) {
  connect();
  const std::vector<std::byte> garbage(100, std::byte{0x5a});
  (void)send_bytes(garbage);
  expect_failure(wire::ErrorCode::malformed, "not a frame");
  EXPECT_EQ(recorder.over, 1);
}

TEST_F(HostSession, ATruncatedFrameHasNoEffectUntilItIsWhole) {
  connect();
  std::vector<std::byte> bytes;
  wire::encode(guest.next_header(), wire::Report{{{GuestFrame(300), 2}}}, bytes);
  (void)send_bytes(std::span(bytes).first(bytes.size() - 1));
  EXPECT_TRUE(recorder.reports.empty());
  (void)send_bytes(std::span(bytes).last(1));
  EXPECT_EQ(recorder.reports.size(), 1U);
}

TEST_F(HostSession, AnOversizedFrameEndsTheSession) {
  connect();
  std::vector<std::byte> bytes;
  wire::encode(guest.next_header(), wire::Report{}, bytes);
  bytes[14] = std::byte{0xff};  // the length, far above the most
  (void)send_bytes(bytes);
  expect_failure(wire::ErrorCode::malformed, "the most is");
}

TEST_F(HostSession, AnUnknownVersionIsNamed) {
  host.open();
  std::vector<std::byte> bytes;
  wire::encode(guest.hello(), hello(), bytes);
  bytes[8] = std::byte{9};
  (void)send_bytes(bytes);
  ASSERT_TRUE(host.failure());
  EXPECT_THAT(*host.failure(), HasSubstr("version 9"));
}

TEST_F(HostSession, AReportOfMoreFramesThanAllowedEndsTheSession) {
  connect();
  send(wire::Report{{{GuestFrame(256), wire::kMaxFramesPerReport + 1}}});
  EXPECT_TRUE(host.failure());
  EXPECT_TRUE(recorder.reports.empty());
}

TEST_F(HostSession, AGapInTheSequenceEndsTheSession) {
  connect();
  (void)guest.next_header();
  send(wire::Report{{{GuestFrame(300), 1}}});
  expect_failure(wire::ErrorCode::sequence, "was due");
  EXPECT_TRUE(recorder.reports.empty());
}

TEST_F(HostSession, FramesOnlyAHostSendsEndTheSession) {
  connect();
  send(wire::LimitsMessage{});
  expect_failure(wire::ErrorCode::malformed, "only the host sends");
}

TEST_F(HostSession, UnknownTypesAreSkipped) {
  connect();
  std::vector<std::byte> bytes;
  wire::encode(guest.next_header(), wire::Purge{}, bytes);
  bytes[10] = std::byte{0xf0};  // the type of some later version
  (void)send_bytes(bytes);
  EXPECT_FALSE(host.failure());
  send(wire::Report{{{GuestFrame(300), 1}}});
  EXPECT_EQ(recorder.reports.size(), 1U);
}

// Lost otherwise: a guest of the mode tell-host-first never gets its memory back, or gets an answer
// to what another session asked.
TEST_F(HostSession, RequestsToBackFramesAreAnsweredInTheirSessionAndBounded) {
  host.set_backs_frames(true);
  connect();
  for (std::size_t i = 0; i < GuestSession::kMaxOpenReports; ++i) {
    send(wire::Populate{{{GuestFrame(300 + i), 1}}});
  }
  ASSERT_EQ(recorder.populates.size(), GuestSession::kMaxOpenReports);
  EXPECT_FALSE(host.wants_input()) << "a guest can have the host back frames without end";
  host.complete_populate(recorder.populates[0].first, {1});
  const auto answers = only<wire::Populated>(from_host());
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].request, recorder.populates[0].first.sequence);
  EXPECT_EQ(answers[0].backed, std::vector<std::uint32_t>{1});
  host.close();
  host.complete_populate(recorder.populates[1].first, {1});
  EXPECT_FALSE(host.has_output());
}

// Lost otherwise: memory of the daemon's own group, taken by a guest that nobody allowed it.
TEST_F(HostSession, NothingIsBackedWhereNobodyAllowedIt) {
  host.open();
  EXPECT_EQ(only<wire::Hello>(from_host()).at(0).features & wire::kFeaturePopulate, 0U);
  connect();
  send(wire::Populate{{{GuestFrame(300), 1}}});
  EXPECT_TRUE(recorder.populates.empty());
  expect_failure(wire::ErrorCode::other, "does not back frames");
}

// Lost otherwise: what the guest writes to a frame that it uses again, since the session is over,
// while a worker is between looking at it and discarding it.
TEST_F(HostSession, TheErrorWaitsUntilNoReportIsInWork) {
  connect();
  send(wire::Report{{{GuestFrame(300), 1}}});
  send(wire::Report{{{GuestFrame(400), 1}}});
  host.fail(wire::ErrorCode::detached, "detached");
  EXPECT_TRUE(recorder.over) << "the work must be cancelled at once";
  EXPECT_FALSE(host.has_output());
  host.complete(recorder.reports[0].first, {});
  EXPECT_FALSE(host.has_output());
  EXPECT_FALSE(host.is_over());
  host.complete(recorder.reports[1].first, {});
  expect_failure(wire::ErrorCode::detached, "detached");
  EXPECT_TRUE(host.is_over());
}

TEST_F(HostSession, TheHelloSaysThatFramesCanBeBacked) {
  host.set_backs_frames(true);
  host.open();
  EXPECT_EQ(only<wire::Hello>(from_host()).at(0).features & wire::kFeaturePopulate,
            wire::kFeaturePopulate);
}

// Lost otherwise: the guest's `stats` shows an old number, or a quiet guest is woken every second.
TEST_F(HostSession, TheGuestHearsHowMuchIsAbsentWhenThatHasChanged) {
  host.send_host_state(Bytes::mib(5));
  EXPECT_FALSE(host.has_output()) << "there is no session to say it in";
  connect();
  host.send_host_state(Bytes::mib(5));
  host.send_host_state(Bytes::mib(5) + Bytes(kPageSize));
  host.send_host_state(Bytes::mib(4));
  const auto said = only<wire::HostState>(from_host());
  ASSERT_EQ(said.size(), 2U);
  EXPECT_EQ(said[0].absent, Bytes::mib(5));
  EXPECT_EQ(said[1].absent, Bytes::mib(4));
}

TEST_F(HostSession, GuestsWithOtherPagesAreRefused) {
  host.open();
  wire::Hello strange = hello();
  strange.page_size = 16384;
  send(guest.hello(), strange);
  for (const wire::Frame& frame : from_host()) {
    (void)guest.receive(frame.header);
  }
  send(guest.hello(), strange);
  expect_failure(wire::ErrorCode::page_size, "16384");
  EXPECT_EQ(recorder.established, 0);
}

TEST_F(HostSession, AChannelOfAnotherVmIsNoticedByItsRam) {
  host.open();
  wire::Hello larger = hello();
  larger.ram.push_back({GuestFrame(1 << 20), 1000});
  send(guest.hello(), larger);
  for (const wire::Frame& frame : from_host()) {
    (void)guest.receive(frame.header);
  }
  send(guest.hello(), larger);
  expect_failure(wire::ErrorCode::ram, "another VM");
}

TEST_F(HostSession, FramesOfAnOlderSessionAreIgnored) {
  connect();
  const wire::Header stale = guest.next_header();
  connect();  // the channel was lost and came back
  send(stale, wire::Report{{{GuestFrame(300), 1}}});
  EXPECT_TRUE(recorder.reports.empty());
  EXPECT_FALSE(host.failure());
}

TEST_F(HostSession, WorkOfALostSessionIsNeverAcknowledged) {
  connect();
  send(wire::Report{{{GuestFrame(300), 1}}});
  ASSERT_EQ(recorder.reports.size(), 1U);
  host.close();
  EXPECT_EQ(recorder.over, 1);
  connect();
  host.complete(recorder.reports[0].first, {{1, 0, 0, 0}});
  EXPECT_TRUE(only<wire::Ack>(from_host()).empty());
}

TEST_F(HostSession, ANewAgentOnTheSameChannelStartsAnew) {
  connect();
  send(wire::Report{{{GuestFrame(300), 1}}});
  guest.reset();  // killed and mounted again; the host saw nothing of it
  shake_hands();
  EXPECT_TRUE(host.is_established());
  EXPECT_EQ(recorder.over, 1);
  EXPECT_EQ(recorder.established, 2);
  EXPECT_EQ(recorder.rebooted, 0);
  host.complete(recorder.reports[0].first, {{1, 0, 0, 0}});
  EXPECT_TRUE(only<wire::Ack>(from_host()).empty());
}

TEST_F(HostSession, ARebootIsSeenByTheBootId) {
  connect();
  boot = {2};
  connect();
  EXPECT_EQ(recorder.rebooted, 1);
}

TEST_F(HostSession, AFloodOfReportsStopsAtTheBound) {
  connect();
  std::vector<std::byte> flood;
  for (int i = 0; i < 5000; ++i) {
    wire::encode(guest.next_header(), wire::Report{{{GuestFrame(300), 1}}}, flood);
  }
  std::size_t taken = send_bytes(flood);
  EXPECT_LT(taken, flood.size());
  EXPECT_EQ(recorder.reports.size(), GuestSession::kMaxOpenReports);
  EXPECT_FALSE(host.wants_input());
  // With every one that is done, one more is taken; in the end all are.
  std::size_t done = 0;
  while (!recorder.reports.empty()) {
    const auto batch = recorder.reports.front().first;
    recorder.reports.pop_front();
    host.complete(batch, {{1, 0, 0, 0}});
    ++done;
    (void)from_host();
    taken += send_bytes(std::span(flood).subspan(taken));
    ASSERT_LE(recorder.reports.size(), GuestSession::kMaxOpenReports);
  }
  EXPECT_EQ(done, 5000U);
}

TEST_F(HostSession, SessionAfterSessionDoesNotMultiplyTheWork) {
  for (int i = 0; i < 100; ++i) {
    host.open();
    guest.reset();
    std::vector<std::byte> bytes;
    wire::encode(guest.hello(), hello(), bytes);
    (void)send_bytes(bytes);
    for (const wire::Frame& frame : from_host()) {
      (void)guest.receive(frame.header);
    }
    bytes.clear();
    wire::encode(guest.hello(), hello(), bytes);
    for (int r = 0; r < 8; ++r) {
      wire::encode(guest.next_header(), wire::Report{{{GuestFrame(300), 1}}}, bytes);
    }
    (void)send_bytes(bytes);
  }
  EXPECT_LE(recorder.reports.size(), GuestSession::kMaxOpenReports);
}

TEST_F(HostSession, APeerThatNeverReadsStopsBeingRead) {
  connect();
  std::vector<std::byte> hellos;
  for (int i = 0; i < 20'000; ++i) {
    guest.reset();
    wire::encode(guest.hello(), hello(), hellos);
  }
  EXPECT_LT(send_bytes(hellos), hellos.size());
  EXPECT_FALSE(host.wants_input());
  EXPECT_LE(host.take_output().size(), GuestSession::kMaxOutput + 1024);
}

TEST_F(HostSession, HelloIsRepeatedOnlyToAGuestThatWasHeard) {
  host.open();
  (void)from_host();  // lost on the way
  host.repeat_hello();
  EXPECT_FALSE(host.has_output()) << "to nobody";
  send({wire::Type::stats, 0, 77, 88, 5}, wire::Stats{});  // a guest that believes in a session
  host.repeat_hello();
  EXPECT_EQ(only<wire::Hello>(from_host()).size(), 1U);
}

// ---------------------------------------------------------------------------------------- reports

/// Zero pages but for those marked as data; remembers what it discarded.
class FakeRam : public RamOwner {
 public:
  DiscardOutcome discard(const BackingRange& range) override {
    calls.push_back(range);
    DiscardOutcome outcome;
    outcome.discarded = static_cast<std::uint32_t>(range.range.pages());
    if (range.range.start <= data && data < range.range.end()) {
      --outcome.discarded;
      outcome.not_zero = 1;
    }
    return outcome;
  }
  int populate(const BackingRange& range) override {
    if (range.range.start <= data && data < range.range.end()) {
      return ENOMEM;
    }
    calls.push_back(range);
    return 0;
  }
  bool can_populate() const override { return true; }
  Bytes footprint() const override { return Bytes(0); }
  Bytes size() const override { return Bytes::gib(1); }

  HostOffset data{~std::uint64_t{0}};
  std::vector<BackingRange> calls;
};

class Reports : public ::testing::Test {
 protected:
  std::vector<wire::RangeOutcome> execute(std::vector<FrameRange> ranges) {
    auto outcomes = execute_report({std::move(ranges)}, layout, ram, cancelled);
    EXPECT_TRUE(outcomes);
    return outcomes.value_or(std::vector<wire::RangeOutcome>());
  }
  RamLayout layout = one_gib();
  FakeRam ram;
  std::atomic<bool> cancelled{false};
};

TEST_F(Reports, GoodRangesAreTranslatedAndDiscarded) {
  const auto outcomes = execute({{GuestFrame(300), 4}, {GuestFrame(400), 1}});
  EXPECT_EQ(outcomes[0], (wire::RangeOutcome{4, 0, 0, 0}));
  EXPECT_EQ(outcomes[1], (wire::RangeOutcome{1, 0, 0, 0}));
  ASSERT_EQ(ram.calls.size(), 2U);
  EXPECT_EQ(ram.calls[0].range.start, HostOffset(300 * kPageSize));
}

TEST_F(Reports, FramesOutsideRamAreRefusedAndTheRestGoesOn) {
  const auto outcomes =
      execute({{GuestFrame(262143), 2}, {GuestFrame(1 << 30), 1}, {GuestFrame(~0ULL), 5}});
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome.discarded, 0U);
    EXPECT_GT(outcome.refused, 0U);
  }
  EXPECT_TRUE(ram.calls.empty());
  EXPECT_EQ(execute({{GuestFrame(262143), 2}, {GuestFrame(300), 1}})[1].discarded, 1U);
}

TEST_F(Reports, RomIsRefused) {
  const auto outcomes = execute({{GuestFrame(0xc0), 1}, {GuestFrame(0xf0), 32}});
  EXPECT_EQ(outcomes[0].refused, 1U);
  EXPECT_EQ(outcomes[1].refused, 32U) << "half in a ROM is refused whole";
  EXPECT_TRUE(ram.calls.empty());
}

TEST_F(Reports, OverlappingAndDescendingRangesAreRefused) {
  const auto outcomes = execute({{GuestFrame(500), 10},
                                 {GuestFrame(505), 10},
                                 {GuestFrame(400), 10},
                                 {GuestFrame(500), 10},
                                 {GuestFrame(510), 1}});
  EXPECT_EQ(outcomes[0].discarded, 10U);
  EXPECT_EQ(outcomes[1].refused, 10U);
  EXPECT_EQ(outcomes[2].refused, 10U);
  EXPECT_EQ(outcomes[3].refused, 10U);
  EXPECT_EQ(outcomes[4].discarded, 1U);
  EXPECT_EQ(ram.calls.size(), 2U);
}

TEST_F(Reports, LiveDataIsReportedAsNotZero) {
  ram.data = HostOffset(301 * kPageSize);
  EXPECT_EQ(execute({{GuestFrame(300), 4}})[0], (wire::RangeOutcome{3, 1, 0, 0}));
}

// Lost otherwise: a guest uses a frame that has no memory, or has the host back what is not its
// RAM.
TEST_F(Reports, FramesAreBackedWhereTheyAreRamAndThereIsMemory) {
  ram.data = HostOffset(401 * kPageSize);  // here the host has none
  const wire::Populate request{{{GuestFrame(300), 4},
                                {GuestFrame(302), 4},
                                {GuestFrame(400), 4},
                                {GuestFrame(1 << 30), 4},
                                {GuestFrame(500), 2}}};
  EXPECT_EQ(execute_populate(request, layout, &ram), (std::vector<std::uint32_t>{4, 0, 0, 0, 2}));
  EXPECT_EQ(ram.calls.size(), 2U);
  EXPECT_EQ(execute_populate(request, layout, nullptr), std::vector<std::uint32_t>(5));
}

TEST_F(Reports, ACancelledBatchDoesNothingMore) {
  cancelled = true;
  EXPECT_FALSE(execute_report({{{GuestFrame(300), 4}}}, layout, ram, cancelled));
  EXPECT_TRUE(ram.calls.empty());
}

}  // namespace
}  // namespace fileballoon::host
