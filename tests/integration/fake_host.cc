#include "tests/integration/fake_host.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <system_error>

namespace fileballoon::test {
namespace {

wire::SessionId random_id() {
  static thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine() | 1U;
}

}  // namespace

FakeHost::FakeHost(std::string socket_path)
    : path_(std::move(socket_path)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      session_(random_id) {
  open_listener();
  thread_ = std::thread([this] { run(); });
}

FakeHost::~FakeHost() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
  thread_.join();
  ::unlink(path_.c_str());
}

void FakeHost::open_listener() {
  ::unlink(path_.c_str());
  listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 4) != 0) {
    throw std::system_error(errno, std::generic_category(), "listen on " + path_);
  }
}

void FakeHost::run() {
  while (true) {
    std::array<pollfd, 3> polls{};
    {
      const std::lock_guard lock(mutex_);
      if (stop_) {
        return;
      }
      polls = {{{wake_.get(), POLLIN, 0},
                {listener_.valid() ? listener_.get() : -1, POLLIN, 0},
                {connection_.valid() ? connection_.get() : -1, POLLIN, 0}}};
    }
    ::poll(polls.data(), polls.size(), 20);
    const std::lock_guard lock(mutex_);
    std::uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &ignored, sizeof ignored);
    if (listener_.valid()) {
      accept_one();
    }
    if (connection_.valid()) {
      read_some();
    }
    answer_asked();
  }
}

wire::Hello FakeHost::own_hello() const {
  wire::Hello hello;
  hello.features = offers_ ? wire::kFeaturePopulate : 0;
  return hello;
}

void FakeHost::answer_asked() {
  for (const auto& [name, request] : asked_) {
    wire::Populated answer{name, {}};
    for (const FrameRange& range : request.ranges) {
      answer.backed.push_back(backs_ ? static_cast<std::uint32_t>(range.count) : 0);
    }
    if (session_.is_established()) {
      send(session_.next_header(), answer);
    }
  }
  asked_.clear();
}

void FakeHost::accept_one() {
  UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) {
    connection_ = std::move(fd);
    session_.reset();
    decoder_.restart();
    pending_.clear();
    send(session_.hello(), own_hello());
  }
}

void FakeHost::read_some() {
  std::array<std::byte, 65536> buffer;
  while (connection_.valid()) {
    const ssize_t got = ::read(connection_.get(), buffer.data(), buffer.size());
    if (got < 0) {
      return;
    }
    if (got == 0) {
      close_connection();
      return;
    }
    std::span<const std::byte> rest(buffer.data(), static_cast<std::size_t>(got));
    while (!rest.empty() && connection_.valid()) {
      rest = rest.subspan(decoder_.feed(rest));
      while (auto item = decoder_.next()) {
        if (std::holds_alternative<wire::DecodeError>(*item)) {
          close_connection();
          return;
        }
        handle(std::get<wire::Frame>(*item));
      }
    }
  }
}

void FakeHost::handle(const wire::Frame& frame) {
  switch (session_.receive(frame.header)) {
    case Session::Verdict::ignore:
      return;
    case Session::Verdict::violation:
      close_connection();
      return;
    case Session::Verdict::reply_hello:
      hello_ = std::get<wire::Hello>(frame.message);
      send(session_.hello(), own_hello());
      return;
    case Session::Verdict::established:
      hello_ = std::get<wire::Hello>(frame.message);
      if (session_.must_reply()) {
        send(session_.hello(), own_hello());
      }
      ++sessions_;
      if (limits_) {
        send(session_.next_header(), wire::LimitsMessage{*limits_, 0});
      }
      return;
    case Session::Verdict::deliver:
      break;
  }
  if (const auto* report = std::get_if<wire::Report>(&frame.message)) {
    ++reports_;
    reported_pages_ += total_frames(report->ranges);
    all_ranges_.insert(all_ranges_.end(), report->ranges.begin(), report->ranges.end());
    if (answer_ == Answer::silence) {
      pending_.emplace_back(frame.header.sequence, *report);
    } else {
      acknowledge(frame.header.sequence, *report, answer_);
    }
  } else if (const auto* deflated = std::get_if<wire::Deflated>(&frame.message)) {
    deflated_pages_ += total_frames(deflated->ranges);
  } else if (const auto* request = std::get_if<wire::Populate>(&frame.message)) {
    asked_pages_ += total_frames(request->ranges);
    asked_.emplace_back(frame.header.sequence, *request);
    most_asked_ = std::max<std::uint64_t>(most_asked_, asked_.size());
  } else if (const auto* stats = std::get_if<wire::Stats>(&frame.message)) {
    ++stats_messages_;
    last_stats_ = *stats;
  }
}

void FakeHost::acknowledge(std::uint64_t batch, const wire::Report& report, Answer answer) {
  wire::Ack ack;
  ack.batch = batch;
  for (const FrameRange& range : report.ranges) {
    wire::RangeOutcome outcome;
    const auto count = static_cast<std::uint32_t>(range.count);
    (answer == Answer::not_zero  ? outcome.not_zero
     : answer == Answer::refused ? outcome.refused
                                 : outcome.discarded) = count;
    ack.outcomes.push_back(outcome);
  }
  send(session_.next_header(), ack);
}

void FakeHost::send(wire::Header header, const wire::Message& message) {
  std::vector<std::byte> bytes;
  wire::encode(header, message, bytes);
  std::size_t sent = 0;
  while (sent < bytes.size() && connection_.valid()) {
    const ssize_t count =
        ::send(connection_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count > 0) {
      sent += static_cast<std::size_t>(count);
    } else if (errno != EAGAIN && errno != EINTR) {
      close_connection();
    }
  }
}

void FakeHost::close_connection() {
  connection_.reset();
  session_.reset();
  pending_.clear();
  asked_.clear();
}

void FakeHost::answer_with(Answer answer) {
  const std::lock_guard lock(mutex_);
  answer_ = answer;
}

void FakeHost::answer_pending() {
  const std::lock_guard lock(mutex_);
  for (const auto& [batch, report] : pending_) {
    acknowledge(batch, report, Answer::discarded);
  }
  pending_.clear();
}

void FakeHost::set_limits(Limits limits) {
  const std::lock_guard lock(mutex_);
  limits_ = limits;
  if (session_.is_established()) {
    send(session_.next_header(), wire::LimitsMessage{limits, 0});
  }
}

void FakeHost::send_purge(Bytes amount) {
  const std::lock_guard lock(mutex_);
  send(session_.next_header(), wire::Purge{amount});
}

void FakeHost::send_state(Bytes absent) {
  const std::lock_guard lock(mutex_);
  send(session_.next_header(), wire::HostState{absent});
}

void FakeHost::offer_backing(bool offer) {
  const std::lock_guard lock(mutex_);
  offers_ = offer;
}

void FakeHost::back_with(bool backs) {
  const std::lock_guard lock(mutex_);
  backs_ = backs;
}

void FakeHost::send_raw(std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (connection_.valid()) {
    [[maybe_unused]] const ssize_t sent =
        ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
}

void FakeHost::hang_up() {
  const std::lock_guard lock(mutex_);
  close_connection();
}

void FakeHost::stop_listening() {
  const std::lock_guard lock(mutex_);
  listener_.reset();
  ::unlink(path_.c_str());
}

void FakeHost::listen() {
  const std::lock_guard lock(mutex_);
  open_listener();
}

#define FILEBALLOON_LOCKED_GETTER(type, name, value) \
  type FakeHost::name() const {                      \
    const std::lock_guard lock(mutex_);              \
    return value;                                    \
  }
FILEBALLOON_LOCKED_GETTER(std::uint64_t, sessions, sessions_)
FILEBALLOON_LOCKED_GETTER(std::uint64_t, reported_pages, reported_pages_)
FILEBALLOON_LOCKED_GETTER(std::uint64_t, reports, reports_)
FILEBALLOON_LOCKED_GETTER(std::uint64_t, ranges, all_ranges_.size())
FILEBALLOON_LOCKED_GETTER(std::uint64_t, unanswered, pending_.size())
FILEBALLOON_LOCKED_GETTER(std::uint64_t, stats_messages, stats_messages_)
FILEBALLOON_LOCKED_GETTER(wire::Stats, last_stats, last_stats_)
FILEBALLOON_LOCKED_GETTER(wire::Hello, hello, hello_)
FILEBALLOON_LOCKED_GETTER(std::vector<FrameRange>, all_ranges, all_ranges_)
FILEBALLOON_LOCKED_GETTER(bool, connected, session_.is_established())
FILEBALLOON_LOCKED_GETTER(std::uint64_t, deflated_pages, deflated_pages_)
FILEBALLOON_LOCKED_GETTER(std::uint64_t, asked_pages, asked_pages_)
FILEBALLOON_LOCKED_GETTER(std::uint64_t, most_asked_at_once, most_asked_)
#undef FILEBALLOON_LOCKED_GETTER

}  // namespace fileballoon::test
