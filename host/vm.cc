#include "host/vm.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <numeric>
#include <random>
#include <utility>

#include "host/channel_socket.h"
#include "host/guest_stat_names.h"
#include "host/keep_running.h"
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

}  // namespace

Vm::Vm(asio::io_context& control, Pools pools, EventLog& events, Attachment attachment,
       const Wanted& wanted, Options options)
    : control_(control),
      worker_(asio::make_strand(pools.discards)),
      events_(events),
      options_(std::move(options)),
      spec_(std::move(attachment.spec)),
      known_(std::move(attachment.known)),
      vmm_(std::move(attachment.vmm)),
      ram_(std::move(attachment.ram)),
      ram_size_(ram_->size()),
      layout_(std::make_shared<const RamLayout>(std::move(attachment.layout))),
      first_channel_(std::move(attachment.channel)),
      pidfd_(control, attachment.pidfd.release()),
      session_(random_session_id, *layout_, *this),
      balloon_({[this]() -> std::optional<Bytes> {
                  const auto pages = guest_stats_.find(wire::StatKey::resident_pages);
                  return session_.is_established() && pages != guest_stats_.end()
                             ? std::optional(Bytes::pages(pages->second))
                             : std::nullopt;
                },
                [this](const Limits&) { send_limits(); }},
               wanted.limits),
      steer_timer_(control),
      deflation_(std::make_shared<VmDeflation>(control, events, spec_.name, ram_size_,
                                               ram_->keeper_socket())),
      changed_(control.get_executor()) {
  const std::string socket = ram_->keeper_socket();
  if (!socket.empty() && wanted.settings.store.has_store()) {
    pager_ = std::make_shared<VmPager>(
        control, pools.pagers, events, spec_.name, socket,
        paging_options(wanted.settings.store, spec_.name, options_.budget_dir));
  }
  policy_ = std::make_unique<PolicyRunner>(spec_.name, ram_size_, events_, balloon_, pager_.get());
  const Bytes ceiling = wanted.ceiling.value_or(ram_size_ - wanted.limits.target);
  if (const Result<void> restored = policy_->restore(wanted.settings, ceiling); !restored) {
    events_.publish(Severity::warning, "settings-refused", spec_.name, restored.error().message);
  }
  if (wanted.share) {
    policy_->set_share(*wanted.share, false);
  }
  session_.set_backs_frames(backs_frames());
  if (policy_->settings().cache) {
    session_.set_cache({*policy_->settings().cache});
  }
  send_limits();
}

Vm::~Vm() = default;

void Vm::start(std::function<void()> on_gone, const std::function<void()>& on_pressure) {
  on_gone_ = std::move(on_gone);
  const auto self = shared_from_this();
  const auto keep = [this](std::string what, std::function<asio::awaitable<void>()> loop) {
    keep_running(control_, events_, spec_.name, std::move(what), std::move(loop));
  };
  keep("the channel", [self] { return self->keep_channel(); });
  keep("the watch over the VMM", [self] { return self->watch_vmm(); });
  deflation_->start(on_pressure);
  if (pager_) {
    pager_->start(on_pressure);
  }
  keep("the memory policy", [self] { return self->keep_steering(); });
}

asio::awaitable<void> Vm::keep_channel() {
  std::optional<LocalSocket> socket;
  if (first_channel_.valid()) {
    socket.emplace(control_, asio::local::stream_protocol(), first_channel_.release());
  }
  if (channel_) {  // of a run that failed
    channel_->stop("an internal error");
    channel_.reset();
  }
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
  if (ram_) {
    // Not here: closing the last descriptor of a large memfd takes the kernel its time.
    asio::post(worker_, [ram = std::move(ram_)]() mutable { ram.reset(); });
  }
}

void Vm::abandon() {
  stopping_ = true;
  deflation_->stop();
  if (pager_) {
    pager_->stop();
  }
  if (external_) {
    external_->stop();
  }
  steer_timer_.cancel();
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
  if (pager_) {
    pager_->stop();
  }
  steer_timer_.cancel();
  error_code ignored;
  pidfd_.close(ignored);
  asio::steady_timer patience(control_, std::chrono::seconds(1));
  if (channel_) {
    // Cancels the work, and tells the guest when none is left.
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

/// Takes effect at once where a session stands, else when one does.
void Vm::send_limits() {
  session_.set_limits({balloon_.limits(), epoch_});
  if (channel_) {
    channel_->notify();
  }
}

void Vm::set_floor(Bytes floor) {
  balloon_.set_floor(floor.page_floor());
  steer();
}

std::uint64_t Vm::advance_epoch() {
  ++epoch_;
  send_limits();
  return epoch_;
}

void Vm::set_cache(CacheMode mode) {
  policy_->set_cache(mode);
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

// ------------------------------------------------------------------------------------ memory
// policy

void Vm::steer() {
  if (stopping_ || leaving_ || !ram_) {
    return;
  }
  appoint_actor();
  PolicyRunner::Look look;
  look.footprint = ram_->footprint();
  look.evicted_pages = guest_stat(wire::StatKey::evicted_pages);
  look.guest_free = Bytes(guest_stat(wire::StatKey::mem_free_bytes));
  if (pager_) {
    look.pager_problem = pager_->problem();
  }
  policy_->step(look, Clock::now());
  if (external_) {
    external_->set_footprint(look.footprint);
    const Bytes wanted = policy_->wanted();
    external_->set_target(
        {wanted < ram_size_ ? std::optional(wanted) : std::nullopt, policy_->settings().minimum});
  }
}

std::uint64_t Vm::guest_stat(wire::StatKey key) const {
  const auto found = guest_stats_.find(key);
  return found == guest_stats_.end() ? 0 : found->second;
}

Vm::Numbers Vm::numbers() const {
  Numbers numbers;
  numbers.footprint = footprint();
  if (guest_stats_.contains(wire::StatKey::mem_available_bytes)) {
    numbers.available = Bytes(guest_stat(wire::StatKey::mem_available_bytes));
    numbers.age = Clock::now() - *guest_stats_at_;
  }
  numbers.deflated = deflation_->meter().total();
  numbers.resident = Bytes::pages(guest_stat(wire::StatKey::resident_pages));
  return numbers;
}

/// Starts or ends an external actor as the settings say.
void Vm::appoint_actor() {
  const ActorName& actor = policy_->settings().actor;
  const bool is_wanted = actor.kind == ActorName::Kind::external;
  if (external_ && (!is_wanted || external_->path() != actor.name)) {
    external_->stop();
    external_.reset();
  }
  if (is_wanted && !external_) {
    external_ = std::make_shared<ExternalActor>(control_, events_, spec_.name, ram_size_,
                                                actor.name, options_.control_socket);
    external_->start();
  }
}

asio::awaitable<void> Vm::keep_steering() {
  while (!stopping_) {
    steer();
    steer_timer_.expires_after(kPolicyInterval);
    error_code ignored;
    co_await steer_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

asio::awaitable<Result<void>> Vm::bring_back() {
  const auto self = shared_from_this();
  leaving_ = true;
  if (external_) {
    external_->stop();
    external_.reset();
  }
  if (!pager_) {
    co_return Result<void>();
  }
  const Result<Pager::Progress> back = co_await pager_->bring_back();
  if (!back) {
    leaving_ = false;
    co_return Error{
        fmt::format("the paged-out frames of '{}' cannot be brought back ({}); it stays "
                    "attached, since they would be lost",
                    spec_.name, back.error().message)};
  }
  if (back->lost > 0) {
    events_.publish(Severity::error, "pages-lost", spec_.name,
                    fmt::format("{} pages could not be read back from the store; the guest is told "
                                "of a memory error where it touches one",
                                back->lost));
  }
  co_return Result<void>();
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
  if ((hello.features & wire::kFeatureTellHostFirst) != 0 && !backs_frames()) {
    session_.fail(wire::ErrorCode::other,
                  "deflate=tell-host-first needs a host that backs frames on request: attach the "
                  "VM with --back-frames, and with --refault kernel");
  }
}

bool Vm::backs_frames() const { return spec_.back_frames && ram_ && ram_->can_populate(); }

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
    deflation_->guest_holds(*resident, limits().target.whole_pages());
  }
  guest_stats_at_ = Clock::now();
  if (ram_) {
    session_.send_host_state(ram_size_ - ram_->footprint());
  }
}

void Vm::on_deflated(const wire::Deflated& deflated) {
  counters_.deflated += total_frames(deflated.ranges);
  guest_stats_[wire::StatKey::resident_pages] = deflated.resident.whole_pages();
  deflation_->guest_holds(deflated.resident.whole_pages(), limits().target.whole_pages());
  guest_stats_at_ = Clock::now();
}

}  // namespace fileballoon::host
