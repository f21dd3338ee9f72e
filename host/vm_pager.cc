#include "host/vm_pager.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "host/background.h"
#include "host/keep_running.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;
using faultd::PagingClient;

Severity severity_of(PagerEvent::Kind kind) {
  switch (kind) {
    case PagerEvent::Kind::resumed:
      return Severity::info;
    case PagerEvent::Kind::page_lost:
    case PagerEvent::Kind::page_withheld:
      return Severity::error;
    case PagerEvent::Kind::stopped:
    case PagerEvent::Kind::huge_page:
      break;
  }
  return Severity::warning;
}

}  // namespace

PagingOptions paging_options(const StoreSettings& store, const std::string& vm,
                             const std::string& budget_dir) {
  PagingOptions options;
  options.vm = vm;
  options.memory = store.memory;
  options.compression = store.compression;
  options.path = store.path;
  options.file = store.file_limit;
  options.daily_writes = store.daily_writes;
  if (store.daily_writes.count() > 0) {
    options.budget_file = budget_dir + "/writes-" + vm;
  }
  return options;
}

Result<void> start_paging(const std::string& socket, const PagingOptions& options) {
  if (!options.budget_file.empty()) {
    std::error_code failed;
    std::filesystem::create_directories(std::filesystem::path(options.budget_file).parent_path(),
                                        failed);
    if (failed) {
      return Error{
          fmt::format("cannot make the folder of {}, where the day's writes are "
                      "remembered: {}",
                      options.budget_file, failed.message())};
    }
  }
  auto client = PagingClient::connect(socket);
  if (!client) {
    return client.error();
  }
  const auto status = client->status();
  if (!status) {
    return status.error();
  }
  if (status->active) {
    return {};
  }
  return status->starting ? client->wait_for_start() : client->start(options);
}

/// Page out down to `goal`, or hold at most `limit`, or neither: leave things as they are.
struct VmPager::Order {
  std::optional<Bytes> goal;
  std::optional<Bytes> limit;
  bool bring_back = false;
  bool operator==(const Order&) const = default;
};

struct VmPager::Link {
  std::string socket;
  PagingOptions options;
  std::optional<PagingClient> client;
  std::optional<Order> told;
  std::chrono::steady_clock::time_point start_again{};

  [[nodiscard]] Result<void> tell(const Order& order);
  [[nodiscard]] Answer talk(const std::optional<Order>& order,
                            const std::optional<Ceiling>& ceiling);
};

struct VmPager::Answer {
  std::optional<PagingClient::Status> status;
  std::string problem;
};

Result<void> VmPager::Link::tell(const Order& order) {
  if (told == order) {
    return {};
  }
  Result<void> done{};
  if (order.bring_back) {
    done = client->begin_page_in();
  } else if (order.goal) {
    done = client->set_goal(*order.goal);
  } else if (order.limit) {
    done = client->set_limit(*order.limit);
  } else {
    done = client->clear_goal();
  }
  if (done) {
    told = order;
  }
  return done;
}

VmPager::Answer VmPager::Link::talk(const std::optional<Order>& order,
                                    const std::optional<Ceiling>& ceiling) {
  const auto fail = [this](const Error& error) {
    client.reset();
    told.reset();
    return Answer{std::nullopt, error.message};
  };
  if (!client) {
    auto connected = PagingClient::connect(socket);
    if (!connected) {
      return fail(connected.error());
    }
    client.emplace(std::move(*connected));
  }
  auto status = client->status();
  if (!status) {
    return fail(status.error());
  }
  if (!status->active) {
    const auto now = std::chrono::steady_clock::now();
    if (order && order->bring_back) {
      status->detach.started = status->detach.finished = true;  // there is nothing to bring back
      return {std::move(*status), ""};
    }
    if (now < start_again) {
      return {std::move(*status), ""};
    }
    start_again = now + kRetry;
    if (const Result<void> started = start_paging(socket, options); !started) {
      return {std::move(*status), started.error().message};
    }
    status = client->status();  // a guest may be filling its RAM: nobody waits for the next look
    if (!status) {
      return fail(status.error());
    }
  }
  // The keeper's own word is what counts: it may be another daemon's, or one from before a crash.
  if (ceiling && ceiling->most != status->service.ceiling && !(order && order->bring_back)) {
    if (const Result<void> set = client->set_ceiling(ceiling->most); !set) {
      return fail(set.error());
    }
    status->service.ceiling = ceiling->most;
  }
  if (order) {
    if (const Result<void> told_it = tell(*order); !told_it) {
      return fail(told_it.error());
    }
  }
  return {std::move(*status), ""};
}

VmPager::VmPager(asio::io_context& control, asio::thread_pool& pool, EventLog& events,
                 std::string vm, std::string socket, PagingOptions options)
    : control_(control),
      pool_(pool),
      events_(events),
      vm_(std::move(vm)),
      link_(std::make_shared<Link>()),
      changed_(control.get_executor()) {
  link_->socket = std::move(socket);
  link_->options = std::move(options);
}

VmPager::~VmPager() = default;

void VmPager::start(std::function<void()> on_ceiling) {
  on_ceiling_ = std::move(on_ceiling);
  keep_running(control_, events_, vm_, "the talk with the pager",
               [self = shared_from_this()] { return self->talk(); });
}

void VmPager::stop() {
  stopping_ = true;
  on_ceiling_ = nullptr;
  changed_.notify();
}

asio::awaitable<void> VmPager::talk() {
  while (!stopping_) {
    const std::optional<Order> order = order_ ? std::optional(*order_) : std::nullopt;
    sent_ = ceiling_;
    auto talk = [link = link_, order, ceiling = sent_] { return link->talk(order, ceiling); };
    Answer answer = co_await run_on(pool_, talk);
    sent_.reset();
    if (stopping_) {
      break;
    }
    take(std::move(answer));
    const bool busy = !status_ || (ceiling_ && ceiling_->most) ||
                      (order_ && (order_->goal || order_->limit || order_->bring_back));
    asio::steady_timer pause(control_, busy ? kBusyInterval : kIdleInterval);
    pause.async_wait([self = shared_from_this()](const error_code&) { self->changed_.notify(); });
    co_await changed_.wait();
  }
  changed_.notify();
}

void VmPager::take(Answer answer) {
  const bool was_ready = is_ready();
  failed_ = !answer.status;
  if (answer.status) {
    report(*answer.status);
    const PagerService::Status before = status_ ? status_->service : PagerService::Status();
    status_ = std::move(answer.status);
    look_at_ceiling(was_ready, before, status_->service);
  }
  if (!answer.problem.empty() && answer.problem != unavailable_) {
    events_.publish(Severity::warning, "paging-unavailable", vm_, answer.problem);
    unavailable_ = answer.problem;
  } else if (answer.problem.empty() && status_ && status_->active && !unavailable_.empty()) {
    events_.publish(Severity::info, "paging-available", vm_, "the VM's frames can be paged out");
    unavailable_.clear();
  }
  changed_.notify();  // for bring_back()
}

void VmPager::report(const PagingClient::Status& status) {
  for (const PagerEvent& event : status.events) {
    const std::string kind =
        event.kind == PagerEvent::Kind::page_lost || event.kind == PagerEvent::Kind::page_withheld
            ? "page-lost"
            : fmt::format("paging-{}", name_of(event.kind));
    events_.publish(severity_of(event.kind), kind, vm_, to_string(event));
  }
  if (status.events_dropped > 0) {
    events_.publish(
        Severity::warning, "paging-events-lost", vm_,
        fmt::format("{} events of the pager came too fast to be kept", status.events_dropped));
  }
  report_progress(status.detach);
}

/// Whoever divides the host hears at once when a guest needs more than its ceiling leaves it, and
/// when memory that a ceiling took has become free for others, and when a ceiling can be kept now.
void VmPager::look_at_ceiling(bool was_ready, const PagerService::Status& before,
                              const PagerService::Status& now) {
  const bool is_new = before.ceiling != now.ceiling || (is_ready() && !was_ready);
  const bool is_close =
      now.ceiling && now.footprint + PagerService::reserve_of(*now.ceiling) >= *now.ceiling;
  if (on_ceiling_ && (is_new || is_close || now.held_faults > before.held_faults)) {
    on_ceiling_();
  }
}

void VmPager::set_ceiling(std::optional<Bytes> most) {
  const Ceiling next{most};
  if (ceiling_ != next) {
    ceiling_ = next;
    changed_.notify();
  }
}

std::optional<Bytes> VmPager::ceiling_in_force() const {
  if (!status_ || !status_->active || !status_->service.ceiling) {
    return std::nullopt;
  }
  const Bytes kept = *status_->service.ceiling;
  if (sent_) {
    return sent_->most ? std::optional(std::max(kept, *sent_->most)) : std::nullopt;
  }
  return kept;
}

Bytes VmPager::store_memory() const {
  return status_ ? status_->service.pager.store.memory + status_->service.pager.metadata : Bytes(0);
}

std::optional<Bytes> VmPager::asked_back() const {
  if (!status_) {
    return std::nullopt;
  }
  return Bytes::pages(status_->service.pager.faults + status_->service.pager.read_ahead);
}

void VmPager::report_progress(const Paging::Detach& detach) {
  const Pager::Progress& progress = detach.progress;
  if (!detach.started || progress.total == 0) {
    return;
  }
  const std::uint64_t tenths = progress.done * 10 / progress.total;
  if (tenths > tenths_) {
    tenths_ = tenths;
    const Bytes done = Bytes::pages(progress.done);
    const Bytes total = Bytes::pages(progress.total);
    events_.publish(Severity::info, "paging-in", vm_,
                    fmt::format("{} of {} back in memory", to_string(done), to_string(total)),
                    {{"done_bytes", done.count()}, {"total_bytes", total.count()}});
  }
}

bool VmPager::is_ready() const {
  return !failed_ && status_ && status_->active && !status_->detach.started && !stopping_;
}

Bytes VmPager::withheld() const {
  return status_ ? Bytes::pages(status_->service.pager.paged_pages) : Bytes(0);
}

std::string VmPager::problem() const {
  if (status_ && status_->service.state == PagerService::State::stopped) {
    return std::string(fileballoon::to_string(status_->service.stop_reason));
  }
  return {};
}

void VmPager::carry_out(const PolicyOrder& order, Bytes footprint) {
  Order next;
  const Bytes paged = withheld();
  if (order.paging_target > paged) {
    next.goal = footprint - (order.paging_target - paged);
  } else if (order.paging_target < paged) {
    next.limit = order.paging_target;
  }
  if (order_ && order_->bring_back) {
    return;
  }
  const bool is_new = !order_ || order_->goal.has_value() != next.goal.has_value() ||
                      order_->limit.has_value() != next.limit.has_value();
  order_ = std::make_unique<Order>(next);
  if (is_new) {
    changed_.notify();
  }
}

asio::awaitable<Result<Pager::Progress>> VmPager::bring_back() {
  const auto self = shared_from_this();
  order_ = std::make_unique<Order>(Order{{}, {}, true});
  if (status_) {
    status_->detach = {};
  }
  failed_ = false;
  changed_.notify();
  while (!(status_ && status_->detach.finished)) {
    if (failed_) {
      order_.reset();
      co_return Error{unavailable_};
    }
    if (stopping_) {
      co_return Error{"the daemon is stopping"};
    }
    co_await changed_.wait();
  }
  co_return status_->detach.progress;
}

json::object VmPager::describe() const {
  json::object object{{"available", is_ready()}, {"problem", unavailable_}};
  if (!status_ || !status_->active) {
    return object;
  }
  const PagerService::Status& service = status_->service;
  const PagerStats& pager = service.pager;
  object["state"] = to_string(service.state);
  object["stopped_because"] = service.stop_reason == StoreStatus::ok
                                  ? json::value(nullptr)
                                  : json::value(fileballoon::to_string(service.stop_reason));
  object["paged_bytes"] = Bytes::pages(pager.paged_pages).count();
  object["paged_out_pages"] = pager.paged_out;
  object["zero_pages"] = pager.zero_pages;
  object["paged_in_pages"] = pager.paged_in;
  object["page_in_faults"] = pager.faults;
  object["lost_pages"] = pager.lost_pages;
  object["ceiling_bytes"] =
      service.ceiling ? json::value(service.ceiling->count()) : json::value(nullptr);
  object["held_faults"] = service.held_faults;
  object["store_memory_bytes"] = pager.store.memory.count();
  object["store_disk_bytes"] = pager.store.disk.count();
  object["store_limit_bytes"] = pager.store.limit.count();
  if (status_->detach.started) {
    const Pager::Progress& progress = status_->detach.progress;
    object["paging_in"] = json::object{{"done_bytes", Bytes::pages(progress.done).count()},
                                       {"total_bytes", Bytes::pages(progress.total).count()}};
  }
  return object;
}

}  // namespace fileballoon::host
