#include "guest-fs/host_link.h"

#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "guest-fs/log.h"

namespace fileballoon::guest {
namespace {

wire::SessionId random_session_id() {
  wire::SessionId id = 0;
  while (id == 0) {
    // Cannot fail or be short for 8 bytes once the pool is ready (getrandom(2)).
    [[maybe_unused]] const ssize_t got = ::getrandom(&id, sizeof id, 0);
  }
  return id;
}

}  // namespace

HostLink::HostLink(ChannelAddress address, wire::Hello hello, Handler& handler, int epoll_fd,
                   std::uint64_t epoll_tag)
    : channel_(std::move(address)),
      hello_(std::move(hello)),
      handler_(handler),
      epoll_fd_(epoll_fd),
      epoll_tag_(epoll_tag),
      session_(random_session_id),
      deadline_(Clock::time_point::min()) {
  out_.reserve(wire::kHeaderSize + wire::kMaxPayload);
  report_.ranges.reserve(wire::kMaxRanges);
}

void HostLink::service(Clock::time_point now) {
  if (!channel_.is_open()) {
    if (deadline_ && now < *deadline_) {
      return;
    }
    open_channel(now);
    if (!channel_.is_open()) {
      return;
    }
  }
  if (!read_all(now)) {
    return;
  }
  if (!channel_.peer_present()) {
    peer_left();
    deadline_.reset();  // the port tells when the host opens its side
    return;
  }
  if (!session_.is_established() && (!hello_sent_ || (deadline_ && now >= *deadline_))) {
    // Said again now and then: the host may have thrown away what came before it was ready.
    send_hello();
    back_off(now);
  }
  write_all(now);
}

void HostLink::open_channel(Clock::time_point now) {
  const int error = channel_.open();
  if (error != 0) {
    if (!complained_) {
      log_warning("channel " + to_string(channel_.address()) + ": " + std::strerror(error) +
                  "; trying again for ever");
      complained_ = true;
    }
    back_off(now);
    return;
  }
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = epoll_tag_;
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, channel_.fd(), &event) != 0) {
    channel_.close();
    back_off(now);
    return;
  }
  session_.reset();
  decoder_.restart();
  hello_sent_ = false;
  deadline_.reset();
}

void HostLink::lose_channel(Clock::time_point now, std::string_view why) {
  if (!complained_) {
    log_warning("channel " + to_string(channel_.address()) + ": " + std::string(why));
    complained_ = true;
  }
  channel_.close();  // leaves the epoll set by itself
  peer_left();
  back_off(now);
}

void HostLink::peer_left() {
  end_session();
  session_.reset();
  decoder_.restart();
  out_.clear();
  out_sent_ = 0;
  hello_sent_ = false;
}

void HostLink::end_session() {
  if (told_session_) {
    told_session_ = false;
    handler_.on_session_end();
  }
}

void HostLink::back_off(Clock::time_point now) {
  deadline_ = now + back_off_;
  back_off_ = std::min(back_off_ * 2, kLastBackOff);
}

void HostLink::send_hello() {
  wire::encode(session_.hello(), hello_, out_);
  hello_sent_ = true;
}

bool HostLink::read_all(Clock::time_point now) {
  std::array<std::byte, 4096> buffer;
  while (true) {
    const Channel::IoResult got = channel_.read(buffer);
    if (got.io == Channel::Io::lost) {
      lose_channel(now, "the host closed it");
      return false;
    }
    if (got.io != Channel::Io::done) {
      return true;
    }
    std::span<const std::byte> rest(buffer.data(), got.count);
    while (!rest.empty()) {
      rest = rest.subspan(decoder_.feed(rest));
      while (auto item = decoder_.next()) {
        if (const auto* bad = std::get_if<wire::DecodeError>(&*item)) {
          lose_channel(now, "not the protocol: " + bad->text);
          return false;
        }
        if (!handle(std::get<wire::Frame>(*item), now)) {
          return false;
        }
      }
    }
  }
}

bool HostLink::handle(const wire::Frame& frame, Clock::time_point now) {
  switch (session_.receive(frame.header)) {
    case Session::Verdict::ignore:
      return true;
    case Session::Verdict::reply_hello:
      if (session_.restarted()) {
        end_session();
      }
      send_hello();
      return true;
    case Session::Verdict::established:
      end_session();
      if (session_.must_reply()) {
        send_hello();
      }
      ++sessions_;
      complained_ = false;
      back_off_ = kFirstBackOff;
      deadline_.reset();
      told_session_ = true;
      log_info("session with the host over " + to_string(channel_.address()));
      handler_.on_session_start(std::get<wire::Hello>(frame.message));
      return true;
    case Session::Verdict::violation:
      lose_channel(now, "the host broke the order: " + session_.violation());
      return false;
    case Session::Verdict::deliver:
      break;
  }
  if (const auto* limits = std::get_if<wire::LimitsMessage>(&frame.message)) {
    handler_.on_limits(*limits);
  } else if (const auto* ack = std::get_if<wire::Ack>(&frame.message)) {
    handler_.on_ack(*ack);
  } else if (const auto* purge = std::get_if<wire::Purge>(&frame.message)) {
    handler_.on_purge(*purge);
  } else if (const auto* cache = std::get_if<wire::CacheOrder>(&frame.message)) {
    handler_.on_cache(*cache);
  } else if (const auto* populated = std::get_if<wire::Populated>(&frame.message)) {
    handler_.on_populated(*populated);
  } else if (const auto* state = std::get_if<wire::HostState>(&frame.message)) {
    handler_.on_host_state(*state);
  } else if (const auto* error = std::get_if<wire::ErrorMessage>(&frame.message)) {
    lose_channel(now, "the host says: " + error->text);
    if (error->code == wire::ErrorCode::detached || error->code == wire::ErrorCode::busy) {
      back_off_ = kLastBackOff;
      back_off(now);
    }
    return false;
  }
  return true;
}

void HostLink::write_all(Clock::time_point now) {
  while (out_sent_ < out_.size()) {
    const Channel::IoResult sent = channel_.write(std::span(out_).subspan(out_sent_));
    if (sent.io == Channel::Io::lost) {
      lose_channel(now, "the host does not take what is written");
      return;
    }
    if (sent.io != Channel::Io::done) {
      return;
    }
    out_sent_ += sent.count;
  }
  out_.clear();
  out_sent_ = 0;
}

void HostLink::set_ram(std::span<const FrameRange> ranges) {
  ranges = ranges.first(std::min(ranges.size(), wire::kMaxRamRanges));
  hello_.ram.assign(ranges.begin(), ranges.end());
}

std::uint64_t HostLink::send_report(std::span<const FrameRange> ranges) {
  report_.ranges.assign(ranges.begin(), ranges.end());
  const wire::Header header = session_.next_header();
  wire::encode(header, report_, out_);
  return header.sequence;
}

void HostLink::send_stats(wire::Stats stats) { send(std::move(stats)); }

std::uint64_t HostLink::send(const wire::Message& message) {
  const wire::Header header = session_.next_header();
  wire::encode(header, message, out_);
  return header.sequence;
}

}  // namespace fileballoon::guest
