#include "host/channel.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/write.hpp>
#include <utility>

namespace fileballoon::host {
namespace {

constexpr std::size_t kReadSize = 16 * 1024;
/// What a guest may send: several times what an agent does that reports 4 GiB a second of single
/// frames, and little enough that a flood of small messages does not take the control thread.
constexpr std::size_t kBytesPerSecond = 16 * 1024 * 1024;
constexpr std::size_t kBurst = 4 * 1024 * 1024;
constexpr std::chrono::seconds kHelloInterval{2};

}  // namespace

Channel::Channel(LocalSocket socket, GuestSession& session, std::chrono::milliseconds write_timeout)
    : socket_(std::move(socket)),
      session_(session),
      write_timeout_(write_timeout),
      write_timer_(socket_.get_executor()),
      hello_timer_(socket_.get_executor()),
      rate_timer_(socket_.get_executor()),
      tokens_(kBurst),
      tokens_at_(std::chrono::steady_clock::now()),
      changed_(socket_.get_executor()) {}

void Channel::stop(std::string reason) {
  if (std::exchange(stopped_, true)) {
    return;
  }
  reason_ = std::move(reason);
  error_code ignored;
  socket_.cancel(ignored);
  hello_timer_.cancel();
  rate_timer_.cancel();
  changed_.notify();
}

asio::awaitable<std::string> Channel::run() {
  session_.open();
  repeat_hello_later();
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this()] { return self->write_loop(); },
      asio::detached);
  co_await read_loop();
  changed_.notify();
  while (!writer_done_) {
    co_await changed_.wait();
  }
  if (session_.failure()) {
    reason_ = *session_.failure();
  }
  session_.close();
  while (session_.open_reports() > 0) {
    co_await changed_.wait();
  }
  error_code ignored;
  socket_.close(ignored);
  co_return reason_;
}

asio::awaitable<void> Channel::wait_for_tokens(std::size_t bytes) {
  using std::chrono::duration;
  while (!stopped_) {
    const auto now = std::chrono::steady_clock::now();
    const auto earned = static_cast<std::size_t>(duration<double>(now - tokens_at_).count() *
                                                 static_cast<double>(kBytesPerSecond));
    tokens_ = std::min(kBurst, tokens_ + earned);
    tokens_at_ = now;
    if (tokens_ >= bytes) {
      tokens_ -= bytes;
      co_return;
    }
    rate_timer_.expires_after(std::chrono::milliseconds(10));
    error_code ignored;
    co_await rate_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

void Channel::repeat_hello_later() {
  hello_timer_.expires_after(kHelloInterval);
  hello_timer_.async_wait([self = shared_from_this()](const error_code& cancelled) {
    if (!cancelled && !self->stopped_) {
      self->session_.repeat_hello();
      self->changed_.notify();
      self->repeat_hello_later();
    }
  });
}

asio::awaitable<void> Channel::read_loop() {
  std::vector<std::byte> buffer(kReadSize);
  std::span<const std::byte> unread;
  while (!stopped_ && !session_.failure()) {
    if (!session_.wants_input()) {
      co_await changed_.wait();
      continue;
    }
    unread = unread.subspan(session_.receive(unread));
    if (session_.has_output() || session_.failure()) {
      changed_.notify();
    }
    if (!unread.empty() || !session_.wants_input()) {
      continue;
    }
    error_code error;
    const std::size_t n = co_await socket_.async_read_some(
        asio::buffer(buffer), asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      stop(error == asio::error::eof ? "the VMM closed the channel"
                                     : "the channel broke: " + error.message());
      break;
    }
    unread = std::span(buffer).first(n);
    auto tokens = wait_for_tokens(n);
    co_await std::move(tokens);
  }
}

asio::awaitable<void> Channel::write_loop() {
  while (!stopped_) {
    if (!session_.has_output()) {
      if (session_.is_over()) {
        break;
      }
      co_await changed_.wait();
      continue;
    }
    const std::vector<std::byte> bytes = session_.take_output();
    changed_.notify();  // there is room for input again
    write_timer_.expires_after(write_timeout_);
    write_timer_.async_wait([self = shared_from_this()](const error_code& cancelled) {
      if (!cancelled) {
        self->stop(fmt::format("the guest did not read for {} s",
                               std::chrono::duration<double>(self->write_timeout_).count()));
      }
    });
    error_code error;
    co_await asio::async_write(socket_, asio::buffer(bytes),
                               asio::redirect_error(asio::use_awaitable, error));
    write_timer_.cancel();
    if (error) {
      stop("the channel broke: " + error.message());
    }
  }
  writer_done_ = true;
  stop("the session ended");
  changed_.notify();
}

}  // namespace fileballoon::host
