#include "host/keep_running.h"

#include <boost/asio/co_spawn.hpp>
#include <memory>
#include <utility>

namespace fileballoon::host {
namespace {

class KeptLoop : public std::enable_shared_from_this<KeptLoop> {
 public:
  KeptLoop(asio::io_context& control, EventLog& events, std::string vm, std::string what,
           std::function<asio::awaitable<void>()> loop, std::chrono::milliseconds pause)
      : control_(control),
        events_(events),
        vm_(std::move(vm)),
        what_(std::move(what)),
        loop_(std::move(loop)),
        pause_(pause),
        timer_(control) {}

  void start() {
    asio::co_spawn(
        control_, [self = shared_from_this()] { return self->loop_(); },
        [self = shared_from_this()](const std::exception_ptr& failure) {
          if (failure) {
            self->restart(what_of(failure));
          }
        });
  }

 private:
  void restart(std::string why) {
    if (why != told_) {
      told_ = std::move(why);
      events_.publish(Severity::error, "internal-error", vm_,
                      what_ + " failed and is started again: " + told_);
    }
    timer_.expires_after(pause_);
    timer_.async_wait([self = shared_from_this()](const error_code& cancelled) {
      if (!cancelled) {
        self->start();
      }
    });
  }

  asio::io_context& control_;
  EventLog& events_;
  std::string vm_;
  std::string what_;
  std::function<asio::awaitable<void>()> loop_;
  std::chrono::milliseconds pause_;
  asio::steady_timer timer_;
  std::string told_;
};

}  // namespace

std::string what_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception of an unknown kind";
  }
}

void keep_running(asio::io_context& control, EventLog& events, std::string vm, std::string what,
                  std::function<asio::awaitable<void>()> loop, std::chrono::milliseconds pause) {
  std::make_shared<KeptLoop>(control, events, std::move(vm), std::move(what), std::move(loop),
                             pause)
      ->start();
}

}  // namespace fileballoon::host
