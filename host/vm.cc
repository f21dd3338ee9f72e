#include "host/vm.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <numeric>
#include <random>
#include <utility>

#include "host/channel_socket.h"
#include "host/report.h"

namespace fileballoon::host {
namespace {

/// First pause before a lost channel is opened again, and the longest. A guest that breaks the
/// protocol at once each time costs the host one connection every five seconds.
constexpr std::chrono::milliseconds kFirstBackOff{200};
constexpr std::chrono::milliseconds kMaxBackOff{5'000};
/// A session that stood this long starts the back-off anew.
constexpr std::chrono::seconds kGoodSession{10};

wire::SessionId random_session_id() {
  static std::random_device source;
  const std::uint64_t id = (static_cast<std::uint64_t>(source()) << 32) | source();
  return id != 0 ? id : 1;
}

struct StatName {
  wire::StatKey key;
  const char* name;
  bool pages;  // shown in bytes
};

constexpr std::array kStatNames = {
    StatName{wire::StatKey::resident_pages, "resident_bytes", true},
    StatName{wire::StatKey::target_pages, "target_bytes", true},
    StatName{wire::StatKey::floor_pages, "floor_bytes", true},
    StatName{wire::StatKey::locked_pages, "locked_bytes", true},
    StatName{wire::StatKey::in_flight_pages, "in_flight_bytes", true},
    StatName{wire::StatKey::evicted_pages, "evicted_pages", false},
    StatName{wire::StatKey::migrated_pages, "migrated_pages", false},
    StatName{wire::StatKey::refused_pages, "refused_pages", false},
    StatName{wire::StatKey::inflated_pages, "inflated_pages", false},
    StatName{wire::StatKey::mem_total_bytes, "mem_total_bytes", false},
    StatName{wire::StatKey::mem_free_bytes, "mem_free_bytes", false},
    StatName{wire::StatKey::mem_available_bytes, "mem_available_bytes", false},
    StatName{wire::StatKey::cached_bytes, "cached_bytes", false},
    StatName{wire::StatKey::psi_some_avg10_centi, "psi_some_avg10_centi", false},
    StatName{wire::StatKey::psi_full_avg10_centi, "psi_full_avg10_centi", false},
    StatName{wire::StatKey::oom_kills, "oom_kills", false},
    StatName{wire::StatKey::growth_reason, "growth_reason", false},
    StatName{wire::StatKey::cache_mode, "cache_mode", false},
    StatName{wire::StatKey::cache_method, "cache_method", false},
    StatName{wire::StatKey::cache_evicted_pages, "cache_evicted_pages", false},
    StatName{wire::StatKey::cache_purged_pages, "cache_purged_pages", false},
    StatName{wire::StatKey::cache_pauses, "cache_pauses", false},
    StatName{wire::StatKey::epoch, "epoch", false},
    StatName{wire::StatKey::deflate_mode, "deflate_mode", false},
};

}  // namespace

Vm::Vm(asio::io_context& control, Workers& workers, EventLog& events, Attachment attachment,
       Limits limits, Options options)
    : control_(control),
      worker_(asio::make_strand(workers)),
      events_(events),
      options_(options),
      spec_(std::move(attachment.spec)),
      known_(std::move(attachment.known)),
      vmm_(std::move(attachment.vmm)),
      ram_(std::move(attachment.ram)),
      ram_size_(ram_->size()),
      layout_(std::make_shared<const RamLayout>(std::move(attachment.layout))),
      first_channel_(std::move(attachment.channel)),
      pidfd_(control, attachment.pidfd.release()),
      session_(random_session_id, *layout_, *this),
      limits_(limits),
      deflation_(std::make_shared<VmDeflation>(control, events, spec_.name, ram_size_,
                                               ram_->keeper_socket())),
      changed_(control.get_executor()) {
  session_.set_limits({limits_, epoch_});
}

Vm::~Vm() = default;

void Vm::start(std::function<void()> on_gone) {
  on_gone_ = std::move(on_gone);
  LocalSocket socket(control_, asio::local::stream_protocol(), first_channel_.release());
  asio::co_spawn(
      control_,
      [self = shared_from_this(), socket = std::move(socket)]() mutable {
        return self->keep_channel(std::move(socket));
      },
      asio::detached);
  asio::co_spawn(
      control_, [self = shared_from_this()] { return self->watch_vmm(); }, asio::detached);
  deflation_->start();
}

asio::awaitable<void> Vm::keep_channel(LocalSocket first) {
  std::optional<LocalSocket> socket(std::move(first));
  std::chrono::milliseconds back_off = kFirstBackOff;
  while (!stopping_) {
    if (!socket) {
      Result<UniqueFd> connected = connect_channel(spec_.channel);
      if (connected) {
        socket.emplace(control_, asio::local::stream_protocol(), connected->release());
      } else if (connected.error().message != no_channel_because_) {
        no_channel_because_ = connected.error().message;
        events_.publish_from_guest(Severity::warning, "channel-unavailable", spec_.name,
                                   no_channel_because_ + "; trying again");
      }
    }
    if (socket) {
      no_channel_because_.clear();
      const auto began = Clock::now();
      channel_ = std::make_shared<Channel>(std::move(*socket), session_, options_.write_timeout);
      socket.reset();
      no_channel_because_ = co_await channel_->run();
      channel_.reset();
      if (stopping_) {
        break;
      }
      if (session_.failure()) {
        ++counters_.failed_sessions;
      }
      events_.publish_from_guest(Severity::warning, "channel-lost", spec_.name,
                                 no_channel_because_ + "; connecting again");
      if (Clock::now() - began > kGoodSession) {
        back_off = kFirstBackOff;
      }
    }
    asio::steady_timer pause(control_, back_off);
    pause.async_wait([this, self = shared_from_this()](const error_code&) { changed_.notify(); });
    const auto until = Clock::now() + back_off;
    while (!stopping_ && Clock::now() < until) {
      co_await changed_.wait();
    }
    back_off = std::min(back_off * 2, kMaxBackOff);
  }
  channel_loop_done_ = true;
  changed_.notify();
}

asio::awaitable<void> Vm::watch_vmm() {
  // A pidfd becomes readable when its process exits (pidfd_open(2)).
  error_code error;
  co_await pidfd_.async_wait(asio::posix::stream_descriptor::wait_read,
                             asio::redirect_error(asio::use_awaitable, error));
  if (error || stopping_) {
    co_return;
  }
  // At once: our descriptor of the memfd would keep the dead guest's memory allocated.
  abandon();
  if (on_gone_) {
    on_gone_();
  }
}

void Vm::release_ram() {
  if (cancelled_) {
    cancelled_->store(true, std::memory_order_relaxed);
  }
  ram_.reset();
}

void Vm::abandon() {
  stopping_ = true;
  deflation_->stop();
  release_ram();
  error_code ignored;
  pidfd_.close(ignored);
  if (channel_) {
    channel_->stop("stopped");
  }
  changed_.notify();
}

asio::awaitable<void> Vm::detach() {
  const auto self = shared_from_this();
  stopping_ = true;
  deflation_->stop();
  on_gone_ = nullptr;
  error_code ignored;
  pidfd_.close(ignored);
  asio::steady_timer patience(control_, std::chrono::seconds(1));
  if (channel_) {
    session_.fail(wire::ErrorCode::detached, "the VM was detached from the host's daemon");
    channel_->notify();
    patience.async_wait([channel = channel_](const error_code& cancelled) {
      if (!cancelled) {
        channel->stop("stopped");
      }
    });
  }
  if (ram_) {
    ram_->give_back();
    // Not here: frames that were paged out come in first, and the control plane never waits.
    ++work_in_flight_;
    asio::post(worker_, [self, ram = std::move(ram_)]() mutable {
      ram.reset();
      asio::post(self->control_, [self] {
        --self->work_in_flight_;
        self->changed_.notify();
      });
    });
  }
  release_ram();
  changed_.notify();
  while (!channel_loop_done_ || work_in_flight_ > 0) {
    co_await changed_.wait();
  }
}

Bytes Vm::footprint() const { return ram_ ? ram_->footprint() : Bytes(0); }

void Vm::set_limits(const Limits& limits) {
  limits_ = limits;
  session_.set_limits({limits_, epoch_});
  if (channel_) {
    channel_->notify();
  }
}

std::uint64_t Vm::advance_epoch() {
  ++epoch_;
  set_limits(limits_);
  return epoch_;
}

void Vm::set_cache(CacheMode mode) {
  session_.set_cache({mode});
  if (channel_) {
    channel_->notify();
  }
}

bool Vm::purge(Bytes amount) {
  const bool sent = session_.send_purge(amount);
  if (channel_) {
    channel_->notify();
  }
  return sent;
}

// ------------------------------------------------------------------------- GuestSession::Delegate

void Vm::on_established(const wire::Hello& hello, bool rebooted) {
  ++counters_.sessions;
  cancelled_ = std::make_shared<std::atomic<bool>>(false);
  guest_stats_.clear();
  guest_stats_at_.reset();
  deflation_->forget_guest();
  if (rebooted) {
    events_.publish_from_guest(Severity::info, "guest-rebooted", spec_.name,
                               "the guest has booted anew; its balloon starts empty");
  }
  events_.publish_from_guest(Severity::info, "guest-connected", spec_.name,
                             "the guest's agent is connected");
  if ((hello.features & wire::kFeatureTellHostFirst) != 0 && ram_ && !ram_->can_populate()) {
    session_.fail(wire::ErrorCode::other,
                  "deflate=tell-host-first needs a host that backs frames on request, which "
                  "--refault uffd does not; attach the VM with --refault kernel");
  }
}

void Vm::on_session_over() { cancelled_->store(true, std::memory_order_relaxed); }

void Vm::on_report(GuestSession::Batch batch, wire::Report report) {
  ++counters_.reports;
  ++work_in_flight_;
  if (!ram_) {
    finish_report(batch, std::nullopt);
    return;
  }
  asio::post(worker_, [self = shared_from_this(), ram = ram_, layout = layout_,
                       cancelled = cancelled_, batch, report = std::move(report)]() mutable {
    auto outcomes = execute_report(report, *layout, *ram, *cancelled);
    ram.reset();  // here, so that the control thread never is the last to close a large backing
    asio::io_context& control = self->control_;
    asio::post(control, [self = std::move(self), batch, outcomes = std::move(outcomes)]() mutable {
      self->finish_report(batch, std::move(outcomes));
    });
  });
}

void Vm::on_populate(GuestSession::Batch batch, wire::Populate request) {
  ++work_in_flight_;
  asio::post(worker_, [self = shared_from_this(), ram = ram_, layout = layout_, batch,
                       request = std::move(request)]() mutable {
    auto backed = execute_populate(request, *layout, ram.get());
    ram.reset();
    asio::io_context& control = self->control_;
    asio::post(control, [self = std::move(self), batch, backed = std::move(backed)]() mutable {
      --self->work_in_flight_;
      self->counters_.backed += std::accumulate(backed.begin(), backed.end(), std::uint64_t{0});
      self->session_.complete_populate(batch, std::move(backed));
      if (self->channel_) {
        self->channel_->notify();
      }
      self->changed_.notify();
    });
  });
}

void Vm::finish_report(GuestSession::Batch batch,
                       std::optional<std::vector<wire::RangeOutcome>> outcomes) {
  --work_in_flight_;
  if (outcomes) {
    for (const wire::RangeOutcome& outcome : *outcomes) {
      counters_.discarded += outcome.discarded;
      counters_.not_zero += outcome.not_zero;
      counters_.refused += outcome.refused;
      counters_.failed += outcome.failed;
    }
  } else {
    ++counters_.cancelled_reports;
  }
  session_.complete(batch, outcomes ? std::move(*outcomes) : std::vector<wire::RangeOutcome>());
  if (channel_) {
    channel_->notify();
  }
  changed_.notify();
}

void Vm::on_stats(const wire::Stats& stats) {
  // Known keys only: what is kept for a guest must not grow with what it sends.
  for (const StatName& stat : kStatNames) {
    if (const auto value = stats.find(stat.key)) {
      guest_stats_[stat.key] = *value;
    }
  }
  if (const auto resident = stats.find(wire::StatKey::resident_pages)) {
    deflation_->guest_holds(*resident, limits_.target.whole_pages());
  }
  guest_stats_at_ = Clock::now();
  if (ram_) {
    session_.send_host_state(ram_size_ - ram_->footprint());
  }
}

void Vm::on_deflated(const wire::Deflated& deflated) {
  counters_.deflated += total_frames(deflated.ranges);
  guest_stats_[wire::StatKey::resident_pages] = deflated.resident.whole_pages();
  deflation_->guest_holds(deflated.resident.whole_pages(), limits_.target.whole_pages());
  guest_stats_at_ = Clock::now();
}

// -------------------------------------------------------------------------------------- reporting

std::string Vm::state() const {
  if (!channel_) {
    return "no channel";
  }
  return session_.is_established() ? "connected" : "waiting for the guest";
}

boost::json::object Vm::summary() const {
  const Bytes now = footprint();
  boost::json::object object{{"name", spec_.name},
                             {"pid", spec_.pid},
                             {"vmm", vmm_},
                             {"state", state()},
                             {"refault", to_string(spec_.refault)},
                             {"band", spec_.band},
                             {"ram_bytes", ram_size_.count()},
                             {"wanted_footprint_bytes", (ram_size_ - limits_.target).count()},
                             {"target_bytes", limits_.target.count()},
                             {"floor_bytes", limits_.floor.count()},
                             {"footprint_bytes", now.count()},
                             {"absent_bytes", (ram_size_ - now).count()}};
  const auto resident = guest_stats_.find(wire::StatKey::resident_pages);
  object["guest_resident_bytes"] = resident == guest_stats_.end()
                                       ? boost::json::value(nullptr)
                                       : boost::json::value(Bytes::pages(resident->second).count());
  return object;
}

boost::json::value Vm::guest_numbers() const {
  if (!guest_stats_at_) {
    return nullptr;
  }
  boost::json::object guest;
  for (const StatName& stat : kStatNames) {
    if (const auto found = guest_stats_.find(stat.key); found != guest_stats_.end()) {
      guest[stat.name] = stat.pages ? Bytes::pages(found->second).count() : found->second;
    }
  }
  guest["age_s"] = std::chrono::duration<double>(Clock::now() - *guest_stats_at_).count();
  return guest;
}

boost::json::object Vm::stats() const {
  boost::json::object object = summary();
  object.erase("guest_resident_bytes");
  object["channel"] = boost::json::object{{"socket", spec_.channel},
                                          {"established", session_.is_established()},
                                          {"last_error", no_channel_because_}};
  object["guest"] = guest_numbers();
  object["deflation"] = deflation_->report();
  object["counters"] = boost::json::object{
      {"reports", counters_.reports},          {"frames_discarded", counters_.discarded},
      {"frames_not_zero", counters_.not_zero}, {"frames_refused", counters_.refused},
      {"frames_failed", counters_.failed},     {"reports_cancelled", counters_.cancelled_reports},
      {"frames_deflated", counters_.deflated}, {"frames_backed", counters_.backed},
      {"sessions", counters_.sessions},        {"sessions_failed", counters_.failed_sessions}};
  boost::json::array warnings;
  for (const std::string& warning : known_.warnings) {
    warnings.emplace_back(warning);
  }
  object["warnings"] = std::move(warnings);
  return object;
}

}  // namespace fileballoon::host
