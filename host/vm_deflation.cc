#include "host/vm_deflation.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "host/keep_running.h"

namespace fileballoon::host {
namespace {

/// Between two looks at a guest that goes on taking memory: soon enough for an arbiter, and twenty
/// messages a second however many faults there are.
constexpr std::chrono::milliseconds kPace{50};
/// A question to the keeper is renewed at least so often.
constexpr std::chrono::seconds kAskAgain{5};
/// Before a keeper that is gone is looked for again; the next discard starts a new one.
constexpr std::chrono::seconds kRetry{1};

}  // namespace

VmDeflation::VmDeflation(asio::io_context& control, EventLog& events, std::string vm, Bytes ram,
                         std::string keeper)
    : events_(events),
      vm_(std::move(vm)),
      keeper_(std::move(keeper)),
      meter_(ram),
      pause_(control),
      look_(control),
      readable_(control),
      control_(control) {}

void VmDeflation::start(std::function<void()> on_fast) {
  on_fast_ = std::move(on_fast);
  if (!keeper_.empty()) {
    keep_running(control_, events_, vm_, "the watch for deflation",
                 [self = shared_from_this()] { return self->follow_keeper(); });
  }
}

void VmDeflation::stop() {
  stopped_ = true;
  on_fast_ = nullptr;
  error_code ignored;
  readable_.close(ignored);
  pause_.cancel();
  look_.cancel();
}

asio::awaitable<void> VmDeflation::pause(Clock::duration time) {
  error_code ignored;
  pause_.expires_after(time);
  co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

asio::awaitable<void> VmDeflation::follow_keeper() {
  while (!stopped_) {
    Result<faultd::DeflationWatch> watch = faultd::DeflationWatch::connect(keeper_);
    if (watch) {
      // Asio's own descriptor of the same socket, so that stop() can close it under a wait.
      const int own = ::fcntl(watch->fd(), F_DUPFD_CLOEXEC, 0);
      if (own < 0) {
        throw std::system_error(errno, std::generic_category(),
                                "no second descriptor of the connection to " + keeper_);
      }
      readable_.assign(own);
      while (!stopped_ && watch->ask(kAskAgain)) {
        error_code error;
        co_await readable_.async_wait(asio::posix::stream_descriptor::wait_read,
                                      asio::redirect_error(asio::use_awaitable, error));
        if (error || stopped_) {
          break;
        }
        const Result<std::uint64_t> pages = watch->take();
        if (!pages) {
          break;
        }
        add(Bytes::pages(*pages));
        co_await pause(kPace);
      }
      error_code ignored;
      readable_.close(ignored);
    }
    if (!stopped_) {
      co_await pause(kRetry);
    }
  }
}

void VmDeflation::guest_holds(std::uint64_t pages, std::uint64_t target) {
  const std::uint64_t before = std::min(guest_pages_.value_or(0), target);
  if (keeper_.empty() && pages < before) {
    add(Bytes::pages(before - pages));
  }
  guest_pages_ = pages;
}

void VmDeflation::add(Bytes amount) {
  const bool was_deflating = meter_.deflating();
  publish(meter_.add(amount, Clock::now()));
  if (meter_.deflating() && !was_deflating) {
    look_later();
  }
  if (on_fast_ && meter_.fast()) {
    on_fast_();
  }
}

// The end of an episode is silence: nobody else would notice it.
void VmDeflation::look_later() {
  look_.expires_after(std::chrono::seconds(1));
  look_.async_wait([self = shared_from_this()](const error_code& cancelled) {
    if (cancelled || self->stopped_) {
      return;
    }
    self->publish(self->meter_.look(Clock::now()));
    if (self->meter_.deflating()) {
      self->look_later();
    }
  });
}

void VmDeflation::publish(DeflationMeter::Change change) {
  const Bytes rate = meter_.per_second(Clock::now());
  switch (change) {
    case DeflationMeter::Change::none:
      return;
    case DeflationMeter::Change::began:
      events_.publish_from_guest(Severity::info, "deflating", vm_,
                                 "the guest takes memory back from its balloon");
      return;
    case DeflationMeter::Change::became_fast:
      events_.publish_from_guest(
          Severity::info, "deflating-fast", vm_,
          fmt::format("the guest takes memory back fast: {} within a second", to_string(rate)));
      return;
    case DeflationMeter::Change::ended:
      events_.publish_from_guest(
          Severity::info, "deflated", vm_,
          fmt::format("the guest took {} back in {:.1f} s", to_string(meter_.episode()),
                      std::chrono::duration<double>(meter_.episode_length()).count()));
      return;
  }
}

boost::json::object VmDeflation::report() const {
  return {{"total_bytes", meter_.total().count()},
          {"bytes_per_s", meter_.per_second(Clock::now()).count()},
          {"fast", meter_.fast()},
          {"seen_by", keeper_.empty() ? "guest" : "keeper"}};
}

}  // namespace fileballoon::host
