// HostLink: the agent's end of the wire protocol. It keeps a channel open for ever (back-off from
// 0.1 s to 5 s), opens sessions, sends reports and statistics, and hands what the host says to a
// Handler. When a session ends for any reason, the handler hears it once, before anything of a new
// session. Single-threaded: the inflater calls service() when the fd is ready or a deadline passes.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <vector>

#include "fileballoon/session.h"
#include "guest-fs/channel.h"

namespace fileballoon::guest {

class HostLink {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kFirstBackOff{100};
  static constexpr std::chrono::milliseconds kLastBackOff{5000};

  class Handler {
   public:
    virtual ~Handler() = default;
    virtual void on_session_start(const wire::Hello& host) = 0;
    /// Everything in flight is cancelled.
    virtual void on_session_end() = 0;
    virtual void on_limits(const wire::LimitsMessage& message) = 0;
    virtual void on_ack(const wire::Ack& ack) = 0;
    virtual void on_purge(const wire::Purge& purge) = 0;
    virtual void on_cache(const wire::CacheOrder& order) = 0;
    virtual void on_populated(const wire::Populated& answer) = 0;
    virtual void on_host_state(const wire::HostState& state) = 0;
  };

  /// `epoll_fd`: the channel is registered there, edge-triggered, with `epoll_tag`; both must
  /// outlive the link. Edges, because a virtio-serial port without a host is always "ready".
  HostLink(ChannelAddress address, wire::Hello hello, Handler& handler, int epoll_fd,
           std::uint64_t epoll_tag);

  /// Does everything that can be done without waiting.
  void service(Clock::time_point now);
  /// When service() must be called again though nothing is ready.
  [[nodiscard]] std::optional<Clock::time_point> deadline() const { return deadline_; }

  [[nodiscard]] bool is_established() const { return session_.is_established(); }
  /// Bytes that the channel has not taken yet.
  [[nodiscard]] std::size_t backlog() const { return out_.size() - out_sent_; }
  [[nodiscard]] std::uint64_t sessions() const { return sessions_; }

  /// What the next session's HELLO says of the guest's RAM.
  void set_ram(std::span<const FrameRange> ranges);
  /// Queues a report; returns the batch's name. Only in an established session.
  [[nodiscard]] std::uint64_t send_report(std::span<const FrameRange> ranges);
  void send_stats(wire::Stats stats);
  /// Queues any other message; returns its sequence. Only in an established session.
  std::uint64_t send(const wire::Message& message);

 private:
  void open_channel(Clock::time_point now);
  void lose_channel(Clock::time_point now, std::string_view why);
  void peer_left();
  void end_session();
  void send_hello();
  [[nodiscard]] bool read_all(Clock::time_point now);
  [[nodiscard]] bool handle(const wire::Frame& frame, Clock::time_point now);
  void write_all(Clock::time_point now);
  void back_off(Clock::time_point now);

  Channel channel_;
  wire::Hello hello_;
  Handler& handler_;
  int epoll_fd_;
  std::uint64_t epoll_tag_;

  Session session_;
  wire::Decoder decoder_;
  std::vector<std::byte> out_;
  std::size_t out_sent_ = 0;
  wire::Report report_;  // kept for its capacity

  bool told_session_ = false;  // the handler has heard of the session
  bool hello_sent_ = false;
  bool complained_ = false;  // one log line per outage
  std::uint64_t sessions_ = 0;
  std::chrono::milliseconds back_off_ = kFirstBackOff;
  std::optional<Clock::time_point> deadline_;
};

}  // namespace fileballoon::guest
