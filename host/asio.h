// The parts of Boost.Asio that the daemon uses, and the one place that sees how its coroutines are
// awaited. Asio runs on io_uring alone (see cmake/targets.cmake) and its implementation is compiled
// once, in asio_impl.cc.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>

namespace fileballoon::host {

namespace asio = boost::asio;
using LocalSocket = asio::local::stream_protocol::socket;
using boost::system::error_code;

/// A condition that coroutines of one thread wait for: notify() wakes all that wait now. The waiter
/// looks at what it waits for before and after, in a loop.
class Signal {
 public:
  explicit Signal(const asio::any_io_executor& executor)
      : timer_(executor, asio::steady_timer::time_point::max()) {}
  void notify() { timer_.cancel(); }
  [[nodiscard]] asio::awaitable<void> wait() {
    error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }

 private:
  asio::steady_timer timer_;
};

}  // namespace fileballoon::host
