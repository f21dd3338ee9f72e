// Sessions: after any restart, on either side, at any moment, both sides must come to one new
// session, and nothing of an older one may be acted on. If this failed a guest would stay without a
// balloon until somebody restarted it, or a cancelled batch would be executed.
#include "fileballoon/session.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <set>

namespace fileballoon {
namespace {

using wire::Header;
using wire::SessionId;
using wire::Type;
using Verdict = Session::Verdict;

Session::IdSource ids_from(SessionId first) {
  return [next = first]() mutable { return next++; };
}

Header hello_of(const Session& session) {
  Header h = session.hello();
  h.type = Type::hello;
  return h;
}
Header data_of(Session& session) {
  Header h = session.next_header();
  h.type = Type::stats;
  return h;
}
Header make_hello(SessionId from, SessionId to, std::uint64_t sequence = 0) {
  Header h;
  h.type = Type::hello;
  h.from = from;
  h.to = to;
  h.sequence = sequence;
  return h;
}

struct Pair {
  Session a{ids_from(100)};
  Session b{ids_from(200)};

  void open() {
    ASSERT_EQ(b.receive(hello_of(a)), Verdict::reply_hello);
    ASSERT_EQ(a.receive(hello_of(b)), Verdict::established);
    ASSERT_TRUE(a.must_reply());
    ASSERT_EQ(b.receive(hello_of(a)), Verdict::established);
    ASSERT_FALSE(b.must_reply());
  }
};

TEST(Session, ThreeHellosEstablishBothSides) {
  Pair p;
  EXPECT_FALSE(p.a.is_established());
  EXPECT_EQ(hello_of(p.a).to, 0U);
  p.open();
  EXPECT_TRUE(p.a.is_established() && p.b.is_established());
  EXPECT_EQ(p.a.peer(), p.b.id());
  EXPECT_EQ(p.b.peer(), p.a.id());
  EXPECT_FALSE(p.a.restarted() || p.b.restarted());
}

TEST(Session, BothSidesMayOpenAtOnce) {
  Pair p;
  const Header from_a = hello_of(p.a);
  const Header from_b = hello_of(p.b);
  ASSERT_EQ(p.a.receive(from_b), Verdict::reply_hello);
  const Header a_answers = hello_of(p.a);
  ASSERT_EQ(p.b.receive(from_a), Verdict::reply_hello);
  const Header b_answers = hello_of(p.b);
  EXPECT_EQ(p.a.receive(b_answers), Verdict::established);
  EXPECT_EQ(p.b.receive(a_answers), Verdict::established);
  // Each may still confirm to the other; that ends it.
  EXPECT_EQ(p.a.receive(hello_of(p.b)), Verdict::ignore);
  EXPECT_EQ(p.b.receive(hello_of(p.a)), Verdict::ignore);
  EXPECT_EQ(p.b.receive(data_of(p.a)), Verdict::deliver);
}

TEST(Session, FramesCountFromOneInEachDirection) {
  Pair p;
  p.open();
  for (std::uint64_t i = 1; i <= 3; ++i) {
    const Header h = data_of(p.a);
    EXPECT_EQ(h.sequence, i);
    EXPECT_EQ(p.b.receive(h), Verdict::deliver);
  }
  EXPECT_EQ(data_of(p.b).sequence, 1U);
}

TEST(Session, AGapOrARepeatIsAViolationThatSaysWhat) {
  Pair p;
  p.open();
  const Header first = data_of(p.a);
  const Header second = data_of(p.a);
  EXPECT_EQ(p.b.receive(second), Verdict::violation);
  EXPECT_EQ(p.b.violation(), "frame 2 arrived where 1 was due");
  EXPECT_FALSE(p.b.is_established());
  EXPECT_EQ(p.b.receive(first), Verdict::ignore) << "the session is over";

  Pair q;
  q.open();
  const Header once = data_of(q.a);
  EXPECT_EQ(q.b.receive(once), Verdict::deliver);
  EXPECT_EQ(q.b.receive(once), Verdict::violation);
}

TEST(Session, NothingIsDeliveredBeforeTheHandshake) {
  Pair p;
  Header h;
  h.type = Type::report;
  h.from = p.a.id();
  h.to = p.b.id();
  h.sequence = 1;
  EXPECT_EQ(p.b.receive(h), Verdict::ignore);
  (void)p.b.receive(hello_of(p.a));
  EXPECT_EQ(p.b.receive(h), Verdict::ignore) << "half a handshake is none";
}

TEST(Session, FramesOfAnOlderSessionAreIgnored) {
  Pair p;
  p.open();
  const Header old = data_of(p.a);
  p.a.reset();
  EXPECT_EQ(p.b.receive(hello_of(p.a)), Verdict::reply_hello);
  EXPECT_TRUE(p.b.restarted()) << "what was in flight must be cancelled";
  EXPECT_NE(p.b.id(), old.to) << "a new session takes a new id on both sides";
  EXPECT_EQ(p.b.receive(old), Verdict::ignore);
  EXPECT_EQ(p.a.receive(hello_of(p.b)), Verdict::established);
  EXPECT_EQ(p.b.receive(hello_of(p.a)), Verdict::established);
  EXPECT_EQ(p.b.receive(old), Verdict::ignore);
  EXPECT_EQ(p.b.receive(data_of(p.a)), Verdict::deliver) << "sequences start anew";
}

TEST(Session, ALostConfirmationIsAnsweredWhenThePeerAsksAgain) {
  Pair p;
  ASSERT_EQ(p.b.receive(hello_of(p.a)), Verdict::reply_hello);
  ASSERT_EQ(p.a.receive(hello_of(p.b)), Verdict::established);
  // a's confirmation is lost; b waits and repeats its HELLO.
  ASSERT_EQ(p.a.receive(hello_of(p.b)), Verdict::reply_hello);
  EXPECT_TRUE(p.a.is_established());
  EXPECT_FALSE(p.a.restarted());
  EXPECT_EQ(p.b.receive(hello_of(p.a)), Verdict::established);
  EXPECT_EQ(p.b.receive(data_of(p.a)), Verdict::deliver);
}

TEST(Session, AConfirmedHelloIsNotAnsweredSoGreetingsEnd) {
  Pair p;
  p.open();
  EXPECT_EQ(p.a.receive(hello_of(p.b)), Verdict::ignore);
  EXPECT_EQ(p.b.receive(hello_of(p.a)), Verdict::ignore);
}

TEST(Session, ANewIdOfThePeerThatKnowsOursEndsTheEarlierSession) {
  Pair p;
  p.open();
  ASSERT_EQ(p.a.receive(make_hello(999, p.a.id())), Verdict::established);
  EXPECT_TRUE(p.a.restarted());
  EXPECT_TRUE(p.a.must_reply());
  EXPECT_EQ(p.a.peer(), 999U);
  EXPECT_EQ(p.a.next_header().sequence, 1U);
}

TEST(Session, AnEchoingChannelIsNoPeer) {
  Pair p;
  EXPECT_EQ(p.a.receive(hello_of(p.a)), Verdict::ignore);
  EXPECT_EQ(p.a.receive(make_hello(p.a.id(), p.a.id())), Verdict::ignore);
  EXPECT_FALSE(p.a.is_established());
}

TEST(Session, ZeroIsNoId) {
  Pair p;
  EXPECT_EQ(p.a.receive(make_hello(0, p.a.id())), Verdict::ignore);
  EXPECT_FALSE(p.a.is_established());
  EXPECT_EQ(p.a.receive(make_hello(0, 0)), Verdict::ignore);
}

TEST(Session, GuessedHellosWithoutOurIdNeverEstablish) {
  Pair p;
  std::mt19937_64 random(3);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(p.a.receive(make_hello(random() | 1, random() | (1ULL << 60))), Verdict::reply_hello);
    EXPECT_FALSE(p.a.is_established());
  }
}

// ------------------------------------------------------------------------------------- property

/// Two sessions and the two directions of a channel that keeps order but may lose frames; each side
/// does what a caller does: answers, repeats HELLO while it waits, resets after a violation.
class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed) {
    for (Side& side : sides_) {
      side.session = std::make_unique<Session>([this] { return ++last_id_; });
    }
  }

  /// One random step. `faults`: frames may be lost and sides may restart.
  void step(bool faults) {
    const int s = static_cast<int>(random_() % 2);
    Side& side = sides_[s];
    switch (random_() % (faults ? 8 : 6)) {
      case 0:
      case 1:
      case 2:
      case 3:
        deliver(s);
        break;
      case 4:  // a timer
        if (!side.session->is_established()) {
          send(s, hello_of(*side.session));
        }
        break;
      case 5:
        if (side.session->is_established()) {
          send(s, data_of(*side.session));
        }
        break;
      case 6:
        if (!side.inbox.empty()) {
          side.inbox.pop_front();
        }
        break;
      default:
        if (random_() % 4 == 0) {
          side.session->reset();
          send(s, hello_of(*side.session));
        }
    }
  }

  /// Delivers all there is, with a fair timer; returns steps until both sides agree, or nothing.
  std::optional<int> settle(int most) {
    for (int i = 0; i < most; ++i) {
      if (agreed() && sides_[0].inbox.empty() && sides_[1].inbox.empty()) {
        return i;
      }
      deliver(0);
      deliver(1);
      if (i % 8 == 7) {  // a repeat that comes sooner or later than an answer, as it falls
        for (int s = 0; s < 2; ++s) {
          if (!sides_[s].session->is_established()) {
            send(s, hello_of(*sides_[s].session));
          } else {
            send(s, data_of(*sides_[s].session));  // a side at work, so that a gap shows
          }
        }
      }
    }
    return std::nullopt;
  }

  [[nodiscard]] bool agreed() const {
    const Session& a = *sides_[0].session;
    const Session& b = *sides_[1].session;
    return a.is_established() && b.is_established() && a.peer() == b.id() && b.peer() == a.id();
  }
  [[nodiscard]] std::uint64_t sent() const { return sent_; }

 private:
  struct Side {
    std::unique_ptr<Session> session;
    std::deque<Header> inbox;
    std::set<std::tuple<SessionId, SessionId, std::uint64_t>> delivered;
  };

  void send(int from, const Header& header) {
    ++sent_;
    sides_[1 - from].inbox.push_back(header);
  }

  void deliver(int to) {
    Side& side = sides_[to];
    if (side.inbox.empty()) {
      return;
    }
    const Header header = side.inbox.front();
    side.inbox.pop_front();
    switch (side.session->receive(header)) {
      case Verdict::deliver:
        EXPECT_EQ(header.to, side.session->id());
        EXPECT_EQ(header.from, side.session->peer());
        EXPECT_TRUE(side.delivered.insert({header.from, header.to, header.sequence}).second)
            << "a frame was acted on twice";
        break;
      case Verdict::ignore:
        break;
      case Verdict::reply_hello:
        send(to, hello_of(*side.session));
        break;
      case Verdict::established:
        if (side.session->must_reply()) {
          send(to, hello_of(*side.session));
        }
        break;
      case Verdict::violation:
        side.session->reset();
        send(to, hello_of(*side.session));
        break;
    }
  }

  std::mt19937_64 random_;
  SessionId last_id_ = 0;
  std::uint64_t sent_ = 0;
  Side sides_[2];
};

TEST(SessionProperty, ConvergesAfterAnyLossesAndRestarts) {
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    const int storm = static_cast<int>(seed % 200);
    for (int i = 0; i < storm; ++i) {
      world.step(true);
    }
    const std::optional<int> steps = world.settle(2000);
    ASSERT_TRUE(steps.has_value()) << "two sides never came to one session";
  }
}

TEST(SessionProperty, WithoutLossAnEstablishedPairStaysTogether) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    ASSERT_TRUE(world.settle(2000).has_value());
    for (int i = 0; i < 300; ++i) {
      world.step(false);
    }
    ASSERT_TRUE(world.agreed()) << "ordinary traffic and no faults broke a session";
  }
}

TEST(SessionProperty, ASettledPairFallsSilent) {
  World world(1);
  ASSERT_TRUE(world.settle(2000).has_value());
  const std::uint64_t sent = world.sent();
  (void)world.settle(2000);
  EXPECT_EQ(world.sent(), sent) << "greetings that go round in circles";
}

}  // namespace
}  // namespace fileballoon
