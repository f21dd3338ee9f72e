// The smaller parts of the daemon and of fileballoonctl: configuration, state file, events,
// parameters, output, and the JSON-line client.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "host/channel_socket.h"
#include "host/config.h"
#include "host/ctl_format.h"
#include "host/event_log.h"
#include "host/keep_running.h"
#include "host/qmp_client.h"
#include "host/rpc.h"
#include "host/state_file.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace json = boost::json;

// ---------------------------------------------------------------------------------- configuration

TEST(Config, EverythingCanBeSet) {
  const auto config = parse_config(R"(
socket = "/tmp/c.sock"
socket_mode = "0660"
socket_group = "kvm"
state_dir = "/tmp/state"
log_level = "debug"
refault = "kernel"
[limits]
write_timeout_ms = 500
max_vms = 3
[[vm]]
name = "web"
pid_file = "/run/web.pid"
channel = "/run/web.sock"
qmp = "/run/web.qmp"
band = 2
footprint = "50%"
floor = "16M"
)",
                                   "f.toml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->socket, "/tmp/c.sock");
  EXPECT_EQ(config->socket_mode, 0660U);
  EXPECT_EQ(config->write_timeout.count(), 500);
  ASSERT_EQ(config->vms.size(), 1U);
  EXPECT_EQ(config->vms[0].spec.band, 2);
  EXPECT_EQ(config->vms[0].footprint, "50%");
}

struct BadConfig {
  const char* text;
  const char* line;
  const char* says;
};

class BadConfigs : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, AreNamedWithFileLineAndKey) {
  const auto config = parse_config(GetParam().text, "f.toml");
  ASSERT_FALSE(config);
  EXPECT_THAT(config.error().message, AllOf(HasSubstr(std::string("f.toml:") + GetParam().line),
                                            HasSubstr(GetParam().says)));
}

INSTANTIATE_TEST_SUITE_P(
    Config, BadConfigs,
    ::testing::Values(
        BadConfig{"\nsokcet = \"/a\"\n", "2", "unknown key 'sokcet'"},
        BadConfig{"socket = 3\n", "1", "'socket' must be a string"},
        BadConfig{"socket = \"a\"\n", "1", "no absolute path"},
        BadConfig{"socket_mode = \"rw\"\n", "1", "no file mode"},
        BadConfig{"log_level = \"loud\"\n", "1", "unknown level 'loud'"},
        BadConfig{"refault = \"magic\"\n", "1", "write kernel or uffd"},
        BadConfig{"[limits]\nmax_vms = 0\n", "2", "from 1 to"},
        BadConfig{"[limits]\nfoo = 0\n", "2", "unknown key 'foo' in [limits]"},
        BadConfig{"limits = 3\n", "1", "must be a table"},
        BadConfig{"vm = 3\n", "1", "must be tables"}, BadConfig{"a = \n", "1", ""},
        BadConfig{"[[vm]]\nname = \"a\"\nchannel = \"/c\"\n", "1", "one of 'pid' and 'pid_file'"},
        BadConfig{"[[vm]]\nname = \"a\"\npid = 1\n", "1", "needs a 'channel'"},
        BadConfig{"[[vm]]\npid = 1\nchannel = \"/c\"\n", "1", "needs a 'name'"},
        BadConfig{"[[vm]]\nname = \"a b\"\n", "2", "bad VM name 'a b'"},
        BadConfig{"[[vm]]\nname = \"a\"\npid = 1\nchannel = \"/c\"\nfootprint = \"1X\"\n", "5",
                  "'footprint': bad size '1X'"},
        BadConfig{"[[vm]]\nname = \"a\"\npid = 1\nchannel = \"/c\"\nband = 99\n", "5", "band"},
        BadConfig{"[[vm]]\nname=\"a\"\npid=1\nchannel=\"/c\"\n[[vm]]\nname=\"a\"\npid=2\n"
                  "channel=\"/d\"\n",
                  "5", "two VMs named 'a'"}));

// -------------------------------------------------------------------------------------- state file

class StateFiles : public ::testing::Test {
 protected:
  StateFiles() {
    char name[] = "/tmp/fileballoon-state.XXXXXX";
    folder = ::mkdtemp(name);
  }
  ~StateFiles() override { std::filesystem::remove_all(folder); }

  static SavedVm vm() {
    SavedVm saved;
    saved.spec = {"web", 42, "/c", "/q", RefaultMode::kernel, 3};
    saved.ceiling = Bytes::gib(3);
    saved.memory.policy = MemoryPolicy::page_then_balloon;
    saved.memory.timeout = std::chrono::milliseconds(1500);
    saved.memory.actor = {ActorName::Kind::external, "/usr/bin/pager"};
    saved.memory.minimum = Bytes::mib(64);
    saved.memory.weight = 7;
    saved.memory.store = {Bytes::mib(32), Compression::zstd, "/var/spill", Bytes::mib(512),
                          Bytes::gib(1)};
    saved.known.start_time = 777;
    saved.known.backings = {{1, 2, Bytes::gib(4)}};
    saved.known.segments = {{{GuestFrame(0), 160}, HostOffset(0), 0},
                            {{GuestFrame(1 << 20), 9}, HostOffset(1 << 30), 0}};
    saved.known.warnings = {"another balloon"};
    saved.limits = {Bytes::mib(600), Bytes::mib(5)};
    return saved;
  }
  std::string folder;
};

TEST_F(StateFiles, WhatWasSavedIsLoaded) {
  StateFile file(folder);
  EXPECT_TRUE(file.load().vms.empty());
  EXPECT_FALSE(file.load().problem);
  ASSERT_TRUE(file.save({vm()}));
  const LoadedState state = file.load();
  ASSERT_EQ(state.vms.size(), 1U);
  const SavedVm& loaded = state.vms[0];
  EXPECT_EQ(loaded.spec.name, "web");
  EXPECT_EQ(loaded.spec.pid, 42);
  EXPECT_EQ(loaded.spec.band, 3);
  EXPECT_EQ(loaded.known.start_time, 777U);
  EXPECT_EQ(loaded.known.backings, vm().known.backings);
  EXPECT_EQ(loaded.known.segments, vm().known.segments);
  EXPECT_EQ(loaded.known.warnings, vm().known.warnings);
  EXPECT_EQ(loaded.limits, vm().limits);
  EXPECT_EQ(loaded.ceiling, vm().ceiling);
  EXPECT_EQ(loaded.memory, vm().memory);
}

TEST_F(StateFiles, ACorruptFileIsSetAsideAndNamed) {
  StateFile file(folder);
  for (const char* text : {"", "{\"format\":1,\"vms\":[{\"na", "[]", "{\"format\":9,\"vms\":[]}",
                           "{\"format\":1,\"vms\":[{\"name\":\"../x\"}]}"}) {
    std::ofstream(file.path()) << text;
    const LoadedState state = file.load();
    EXPECT_TRUE(state.vms.empty());
    ASSERT_TRUE(state.problem) << text;
    EXPECT_THAT(*state.problem, AllOf(HasSubstr(file.path()), HasSubstr(".corrupt")));
    EXPECT_FALSE(std::filesystem::exists(file.path()));
  }
}

TEST_F(StateFiles, AFailedSaveLeavesTheOldState) {
  StateFile file(folder);
  ASSERT_TRUE(file.save({vm()}));
  std::filesystem::create_directory(folder + "/state.json.new");  // in the way
  const auto failed = file.save({});
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr(file.path()));
  EXPECT_EQ(file.load().vms.size(), 1U);
}

// ------------------------------------------------------------------------------------------ events

TEST(Events, AGuestCannotFloodThem) {
  EventLog log;
  int seen = 0;
  const auto id = log.subscribe([&](const json::object&) { ++seen; });
  const auto start = EventLog::Clock::now();
  for (int i = 0; i < 1000; ++i) {
    log.publish_from_guest(Severity::warning, "channel-lost", "vm1", "garbage", start);
  }
  EXPECT_EQ(seen, EventLog::kGuestBurst);
  log.publish_from_guest(Severity::warning, "channel-lost", "vm2", "other VM", start);
  EXPECT_EQ(seen, EventLog::kGuestBurst + 1);
  log.publish_from_guest(Severity::warning, "channel-lost", "vm1", "later",
                         start + std::chrono::seconds(2));
  EXPECT_EQ(log.recent().back().at("left_out").to_number<int>(), 990);
  log.unsubscribe(id);
  log.publish(Severity::info, "x", "", "unheard");
  EXPECT_EQ(seen, EventLog::kGuestBurst + 2);
}

TEST(Events, OnlyTheLastAreKeptAndTheyAreNumbered) {
  EventLog log;
  for (std::size_t i = 0; i < EventLog::kKept + 5; ++i) {
    log.publish(Severity::info, "x", "", "y");
  }
  ASSERT_EQ(log.recent().size(), EventLog::kKept);
  EXPECT_EQ(log.recent().front().at("seq").to_number<int>(), 6);
}

TEST(Events, ASubscriberMayLeaveWhileItIsCalled) {
  EventLog log;
  EventLog::SubscriberId id = 0;
  int seen = 0;
  id = log.subscribe([&](const json::object&) {
    ++seen;
    log.unsubscribe(id);
  });
  log.publish(Severity::info, "x", "", "y");
  log.publish(Severity::info, "x", "", "y");
  EXPECT_EQ(seen, 1);
}

// -------------------------------------------------------------------------------------- parameters

TEST(Params, WrongOnesAreNamed) {
  const json::object object{{"name", "a"}, {"pid", "12"}, {"size", -1}, {"bad", "1Q"}};
  const RpcParams params(object);
  const auto says = [](auto&& call) -> std::string {
    try {
      call();
      return "accepted";
    } catch (const RpcFailure& failure) {
      EXPECT_EQ(failure.code(), RpcCode::invalid_params);
      return failure.what();
    }
  };
  EXPECT_THAT(says([&] { params.allow_only({"name", "pid", "size"}); }), HasSubstr("'bad'"));
  EXPECT_THAT(says([&] { (void)params.integer("pid"); }), HasSubstr("'pid' must be an integer"));
  EXPECT_THAT(says([&] { (void)params.text("nme"); }), HasSubstr("'nme' is missing"));
  EXPECT_THAT(says([&] { (void)params.size("size", Bytes::gib(1)); }), HasSubstr("'size'"));
  EXPECT_THAT(says([&] { (void)params.size("bad", Bytes::gib(1)); }), HasSubstr("'1Q'"));
}

TEST(Params, SizesMayBePercentagesOfRam) {
  const json::object object{{"size", "25%"}, {"bytes", 4096}};
  EXPECT_EQ(RpcParams(object).size("size", Bytes::gib(1)), Bytes::mib(256));
  EXPECT_EQ(RpcParams(object).size("bytes", Bytes::gib(1)), Bytes(4096));
}

TEST(VmNames, StrangeOnesAreRefused) {
  EXPECT_TRUE(check_vm_name("web-1.prod_x"));
  for (const char* name : {"", "-x", ".x", "a b", "a/b", "a\n", "ü"}) {
    EXPECT_FALSE(check_vm_name(name)) << name;
  }
  EXPECT_FALSE(check_vm_name(std::string(65, 'a')));
}

// ------------------------------------------------------------------------------------------ output

TEST(Output, StatsSayWhatIsMeasuredAndWhatTheGuestSays) {
  const json::object vm = json::parse(R"({"name":"web","pid":7,"vmm":"qemu","state":"connected",
    "refault":"kernel","band":0,"ram_bytes":1073741824,"footprint_bytes":104857600,
    "absent_bytes":968884224,"target_bytes":629145600,"floor_bytes":0,
    "wanted_footprint_bytes":444596224,"guest":{"resident_bytes":629145600,"age_s":0.5},
    "counters":{"reports":3},"warnings":["careful"]})")
                              .as_object();
  const std::string text = format_stats(vm);
  EXPECT_THAT(text, HasSubstr("100 MiB  measured on the host"));
  EXPECT_THAT(text, HasSubstr("the guest says (0.5 s ago)"));
  EXPECT_THAT(text, HasSubstr("warning: careful"));
}

TEST(Output, WaitingVmsSayWhy) {
  const json::array vms =
      json::parse(R"([{"name":"web","pid":0,"state":"waiting","reason":"no pid yet"}])").as_array();
  EXPECT_THAT(format_list(vms), HasSubstr("web: waiting: no pid yet"));
  EXPECT_THAT(format_list({}), HasSubstr("no VM"));
}

// ---------------------------------------------------------------------------------- keep_running

// A policy that ends because descriptors ran out for a moment would leave its VM as it is for ever.
TEST(KeepRunning, ALoopThatFailsIsToldOfOnceAndStartedAgainUntilItReturns) {
  asio::io_context control;
  EventLog events;
  int runs = 0;
  const auto loop = [&]() -> asio::awaitable<void> {
    if (++runs < 4) {
      throw std::runtime_error(runs < 3 ? "no descriptors" : "no memory");
    }
    co_return;
  };
  keep_running(control, events, "web", "the watch", loop, std::chrono::milliseconds(0));
  control.run();
  EXPECT_EQ(runs, 4);
  ASSERT_EQ(events.recent().size(), 2U) << "one for each reason";
  const json::object& event = events.recent().front();
  EXPECT_EQ(event.at("event"), "internal-error");
  EXPECT_EQ(event.at("vm"), "web");
  EXPECT_THAT(json::serialize(event),
              HasSubstr("the watch failed and is started again: no descriptors"));
}

// ------------------------------------------------------------------------------------------
// sockets

TEST(ChannelSocket, AnAcceptedConnectionIsSeen) {
  const std::string table =
      "Num       RefCount Protocol Flags    Type St Inode Path\n"
      "0000: 00000002 00000000 00010000 0001 01 16811 /run/vm one.sock\n"
      "0000: 00000003 00000000 00000000 0001 03 16128 /run/two.sock\n"
      "0000: 00000003 00000000 00000000 0001 02     0 /run/three.sock\n";
  EXPECT_FALSE(has_client(table, "/run/vm one.sock"));
  EXPECT_TRUE(has_client(table, "/run/two.sock"));
  EXPECT_FALSE(has_client(table, "two.sock"));
  EXPECT_FALSE(has_client(table, "/run/three.sock"));
}

class Pair : public ::testing::Test {
 protected:
  Pair() {
    std::array<int, 2> fds{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds.data()), 0);
    near = fds[0];
    far = fds[1];
  }
  ~Pair() override {
    if (far >= 0) {
      ::close(far);
    }
  }
  void say(std::string_view text) {
    ASSERT_EQ(::write(far, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  int near = -1;
  int far = -1;
};

TEST_F(Pair, QmpEventsAndRepliesAreKeptApart) {
  say("{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"STOP\"}\n{\"return\": [1]}\n");
  auto qmp = QmpClient::greet(JsonLineClient::adopt(near, "test"));
  ASSERT_TRUE(qmp) << qmp.error().message;
  const auto reply = qmp->execute("query-x");
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->as_array().size(), 1U);
  EXPECT_TRUE(qmp->wait_event("STOP", JsonLineClient::Timeout(0)));
  say("{\"error\": {\"class\": \"X\", \"desc\": \"no such thing\"}}\n");
  const auto refused = qmp->execute("query-y");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("query-y"), HasSubstr("no such thing")));
}

TEST_F(Pair, AMonitorThatDoesNotGreetIsNotWaitedForLong) {
  const auto qmp =
      QmpClient::greet(JsonLineClient::adopt(near, "test"), JsonLineClient::Timeout(50));
  ASSERT_FALSE(qmp);
  EXPECT_THAT(qmp.error().message, HasSubstr("one client at a time"));
}

/// What `ask` answers on a socket whose other end says `greeting`, then `line` without end.
std::string told_without_end(std::string_view greeting, std::string_view line,
                             const std::function<std::string(JsonLineClient)>& ask) {
  constexpr std::chrono::seconds kMuchTooLong{5};
  std::array<int, 2> fds{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds.data()), 0);
  std::string lines(greeting);
  for (int i = 0; i < 100; ++i) {
    lines += line;
  }
  std::atomic<bool> answered = false;
  std::thread peer([&, until = std::chrono::steady_clock::now() + kMuchTooLong] {
    std::size_t at = 0;
    while (!answered && std::chrono::steady_clock::now() < until) {
      const ssize_t n = ::send(fds[1], lines.data() + at, lines.size() - at, MSG_NOSIGNAL);
      at += n > 0 ? static_cast<std::size_t>(n) : 0;
      at = at == lines.size() ? greeting.size() : at;
    }
    ::close(fds[1]);  // an endless wait ends with another error
  });
  std::string answer = ask(JsonLineClient::adopt(fds[0], "test"));
  answered = true;
  peer.join();
  return answer;
}

// An attach would hang, and a worker with it, for as long as the other side likes to talk.
TEST(Client, APeerThatNeverStopsTalkingIsNotListenedToBeyondTheDeadline) {
  constexpr JsonLineClient::Timeout kTimeout(50);
  constexpr std::string_view kGreeting = "{\"QMP\": {}}\n{\"return\": {}}\n";
  constexpr std::string_view kEvent = "{\"event\": \"RTC_CHANGE\"}\n";
  EXPECT_THAT(told_without_end(kGreeting, kEvent,
                               [&](JsonLineClient client) {
                                 auto qmp = QmpClient::greet(std::move(client)).value();
                                 return qmp.execute("query-x", {}, kTimeout).error().message;
                               }),
              AllOf(HasSubstr("query-x"), HasSubstr("in time")));
  EXPECT_THAT(told_without_end(kGreeting, kEvent,
                               [&](JsonLineClient client) {
                                 auto qmp = QmpClient::greet(std::move(client)).value();
                                 return qmp.wait_event("STOP", kTimeout).error().message;
                               }),
              AllOf(HasSubstr("event STOP"), HasSubstr("in time")));
  const std::string late = "test: no answer in time";
  EXPECT_EQ(told_without_end(
                "", "\n",
                [&](JsonLineClient client) { return client.receive(kTimeout).error().message; }),
            late);
  EXPECT_EQ(told_without_end("", "{\"method\": \"event\"}\n",
                             [&](JsonLineClient client) {
                               return client.call("list", {}, kTimeout).error().message;
                             }),
            late);
  EXPECT_EQ(told_without_end("", "{\"id\": 0}\n",
                             [&](JsonLineClient client) {
                               return client.next_notification(kTimeout).error().message;
                             }),
            late);
}

TEST_F(Pair, CallsSkipLateRepliesAndKeepNotifications) {
  say("{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{}}\n"
      "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"mine\"}\n");
  auto client = JsonLineClient::adopt(near, "test");
  const auto result = client.call("list");
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(*result, "mine");
  EXPECT_TRUE(client.next_notification(JsonLineClient::Timeout(0)));
  say("{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-32001,\"message\":\"unknown VM\"}}\n");
  EXPECT_FALSE(client.call("stats"));
  EXPECT_EQ(client.rpc_error().code, -32001);
}

TEST_F(Pair, NonsenseAndSilenceAreErrors) {
  auto client = JsonLineClient::adopt(near, "test");
  say("not json\n");
  EXPECT_FALSE(client.receive());
  EXPECT_FALSE(client.receive(JsonLineClient::Timeout(10)));
  ::close(std::exchange(far, -1));
  EXPECT_FALSE(client.receive());
  EXPECT_TRUE(client.is_closed());
}

TEST(Client, ErrorsNameTheSocketAndWhatIsWrong) {
  const auto missing = JsonLineClient::connect("/nonexistent/x.sock");
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message, HasSubstr("/nonexistent/x.sock: no such socket"));
  const auto file = JsonLineClient::connect("/etc/passwd");
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr("is not a socket"));
  EXPECT_FALSE(JsonLineClient::connect(std::string(200, 'x')));
}

}  // namespace
}  // namespace fileballoon::host
