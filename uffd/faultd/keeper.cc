#include "uffd/faultd/keeper.h"

#include <poll.h>
#include <sys/stat.h>
#include <syslog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "uffd/faultd/packet_socket.h"
#include "uffd/niceness.h"

namespace fileballoon::faultd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr UffdFeatures kWriteProtect = UffdFeature::wp_hugetlbfs_shmem | UffdFeature::pagefault_wp;
constexpr UffdFeatures kEngine = UffdFeature::missing_shmem | kWriteProtect;

UffdFeatures features_for(const Keeper::Options& options) {
  if (options.refaults == RefaultMode::kernel) {
    return kWriteProtect;
  }
  return options.resolver == Resolver::continue_ ? kEngine | UffdFeature::minor_shmem : kEngine;
}
// Pause after an exception: memory does not come back in microseconds.
constexpr int kAfterError = 20;  // ms
constexpr std::size_t kMaxClients = 16;
// Refaulted ranges kept for a client that does not ask: 24 bytes each.
constexpr std::size_t kMaxBacklog = 16384;

// A client that does not read is not waited for: faults are answered elsewhere, but discards of
// other clients come through this thread.
template <class Message>
bool send_message(int fd, const Message& message) {
  return send_packet(fd, message, MSG_DONTWAIT);
}

}  // namespace

Result<std::unique_ptr<Keeper>> Keeper::attach(pid_t pid, const Options& options) {
  auto ram = GuestRam::open(pid);
  if (ram.has_error()) {
    return ram.error();
  }
  if (!options.objects.empty()) {
    if (const Result<void> kept = ram->keep_only(options.objects); kept.has_error()) {
      return kept.error();
    }
  }
  if (ram->backings().size() > kMaxBackings) {
    return Error{ram->process().label() + " has more than " + std::to_string(kMaxBackings) +
                 " memory backends"};
  }
  const bool kernel = options.refaults == RefaultMode::kernel;
  // Write-protect faults alone are rare: one wait queue does.
  auto uffds =
      hot_attach_negotiated(ram->process(), kernel ? 1 : options.shards, features_for(options));
  if (uffds.has_error()) {
    return uffds.error();
  }
  std::unique_ptr<Keeper> keeper(new Keeper(std::move(*ram), options));
  WatchedRam::Options watch;
  watch.mode = options.refaults;
  watch.minor = !kernel && options.resolver == Resolver::continue_;
  auto watched = WatchedRam::create(WatchedRam::objects_of(keeper->ram_), std::move(*uffds), watch);
  if (watched.has_error()) {
    return Error{keeper->ram_.process().label() + ": " + watched.error().message};
  }
  keeper->watched_ = std::move(*watched);
  FaultEngine::Options engine;
  engine.resolver = options.resolver;
  if (kernel) {
    engine.max_spin = std::chrono::microseconds(0);
  }
  keeper->paging_ = std::make_unique<PagingHost>(*keeper->watched_, pid, options.socket);
  keeper->engine_ =
      std::make_unique<FaultEngine>(*keeper->watched_, engine, &keeper->paging_->source());
  keeper->discarder_ = std::make_unique<GuardedDiscarder>(*keeper->watched_);
  keeper->backlog_.reserve(kMaxBacklog);
  return keeper;
}

Result<void> Keeper::listen(const std::string& path) {
  const auto address = socket_address(path);
  if (address.has_error()) {
    return address.error();
  }
  const auto* name = reinterpret_cast<const sockaddr*>(&*address);
  const UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (::connect(probe.get(), name, sizeof *address) == 0 || errno == EAGAIN) {
    return Error{"a fault keeper listens on " + path + " already"};
  }
  if (errno == ECONNREFUSED) {
    ::unlink(path.c_str());  // its owner is dead
  }
  listener_ = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const mode_t old = ::umask(0177);
  const int bound = ::bind(listener_.get(), name, sizeof *address);
  const int error = errno;
  ::umask(old);
  if (bound != 0 || ::listen(listener_.get(), 8) != 0) {
    return Error{"cannot listen on " + path + ": " + std::strerror(bound != 0 ? error : errno)};
  }
  path_ = path;
  return {};
}

std::string Keeper::serve(int stop_fd) {
  std::string reason;
  std::string trouble;
  // From here on this thread discards; those that answer faults run already.
  set_thread_niceness(kDiscardNiceness);
  while (reason.empty()) {
    try {
      reason = step(stop_fd);
    } catch (const std::exception& error) {
      // Ending would leave the guest without what is paged out. Said once a kind.
      if (trouble != error.what()) {
        trouble = error.what();
        ::syslog(LOG_ERR, "goes on after an error: %s", error.what());
      }
      (void)::poll(nullptr, 0, kAfterError);
    }
  }
  if (!path_.empty()) {
    ::unlink(path_.c_str());
  }
  return reason;
}

// One round of waiting and answering. Returns why the keeper ends, or nothing.
std::string Keeper::step(int stop_fd) {
  if (!leaving_.empty() && paging_->leave()) {
    return leaving_;
  }
  std::vector<pollfd> polled = {{leaving_.empty() ? stop_fd : -1, POLLIN, 0},
                                {ram_.process().pidfd.get(), POLLIN, 0},
                                {listener_.get(), POLLIN, 0}};
  const bool waited = std::any_of(clients_.begin(), clients_.end(),
                                  [](const Client& c) { return c.waits != Client::Wait::none; });
  polled.push_back({waited ? engine_->deflation_fd() : -1, POLLIN, 0});
  const std::size_t first_client = polled.size();
  for (const Client& client : clients_) {
    polled.push_back({client.fd.get(), POLLIN, 0});
  }
  // The timeout bounds how late a waiting client's own timeout and a dead reader are seen.
  (void)::poll(polled.data(), polled.size(), waited || !leaving_.empty() ? 20 : 500);
  if (polled[1].revents != 0) {
    return ram_.process().label() + " has exited";
  }
  if (polled[0].revents != 0 && leaving_.empty()) {
    leaving_ = "told to stop";
  }
  if (!engine_->serving() && leaving_.empty()) {
    // What is paged out comes back without faults.
    leaving_ = "the userfaultfd of " + ram_.process().label() + " cannot be read any more";
  }
  const std::size_t known = clients_.size();
  if (polled[2].revents != 0) {
    accept_client();
  }
  if (waited) {
    take_refaults();
  }
  for (std::size_t i = known; i-- > 0;) {
    Next next = Next::keep;
    if ((polled[first_client + i].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      next = handle_safely(clients_[i]);
    }
    if (next == Next::keep && clients_[i].waits != Client::Wait::none &&
        !answer_wait(clients_[i], Clock::now() >= clients_[i].wait_until)) {
      next = Next::drop;
    }
    if (next == Next::detach && leaving_.empty()) {
      leaving_ = "detached";
    }
    if (next != Next::keep) {
      clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  return {};
}

// A client whose request cannot be met for want of memory hears so by being disconnected.
Keeper::Next Keeper::handle_safely(Client& client) {
  try {
    return handle(client);
  } catch (const std::exception& error) {
    ::syslog(LOG_ERR, "a request failed: %s", error.what());
    return Next::drop;
  }
}

void Keeper::accept_client() {
  UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.valid() && clients_.size() < kMaxClients && trusted_peer(fd.get()).has_value()) {
    clients_.push_back({std::move(fd), Client::Wait::none, 0, {}});
  }
}

Keeper::Next Keeper::handle(Client& client) {
  PagingRequest paging;  // the longest there is
  const ssize_t got = ::recv(client.fd.get(), &paging, sizeof paging, MSG_DONTWAIT | MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    return Next::keep;
  }
  if (got == static_cast<ssize_t>(sizeof paging)) {
    const auto reply = std::make_unique<PagingReply>();
    paging_->answer(paging, *reply);
    return send_message(client.fd.get(), *reply) ? Next::keep : Next::drop;
  }
  Request request;
  if (got == static_cast<ssize_t>(sizeof request)) {
    std::memcpy(static_cast<void*>(&request), static_cast<const void*>(&paging), sizeof request);
  }
  if (got != static_cast<ssize_t>(sizeof request) || request.magic != kMagic) {
    return Next::drop;
  }
  if (request.operation == Operation::detach) {
    (void)send_message(client.fd.get(), DetachReply{});
    return Next::detach;  // in any version: it is how a newer daemon replaces an older keeper
  }
  bool ok = true;
  if (request.operation == Operation::hello) {
    ok = reply_hello(client);
  } else if (request.version != kVersion) {
    return Next::drop;
  } else if (request.operation == Operation::stats) {
    ok = reply_stats(client);
  } else if (request.operation == Operation::drain || request.operation == Operation::deflation) {
    client.waits =
        request.operation == Operation::drain ? Client::Wait::refaults : Client::Wait::deflation;
    client.known = request.start;
    client.wait_until = Clock::now() + std::chrono::milliseconds(request.timeout_ms);
  } else if (request.operation == Operation::discard) {
    const bool aligned = request.start % kPageSize == 0 && request.size % kPageSize == 0 &&
                         request.start + request.size >= request.start &&
                         request.size / kPageSize <= UINT32_MAX;
    if (!aligned) {
      return Next::drop;
    }
    const HostRange range{HostOffset(request.start), Bytes(request.size)};
    ok = send_message(client.fd.get(), DiscardReply{discarder_->discard(request.backing, range)});
  } else {
    return Next::drop;
  }
  return ok ? Next::keep : Next::drop;
}

// Into the backlog, where they wait for whoever asks for ranges. What does not fit is dropped, and
// the next one who asks is told so.
void Keeper::take_refaults() {
  const bool complete = engine_->drain([&](std::uint32_t object, HostRange range) {
    if (backlog_.size() < kMaxBacklog) {
      backlog_.push_back({range.start.bytes(), range.size.count(), object});
    } else {
      backlog_complete_ = false;
    }
  });
  backlog_complete_ = backlog_complete_ && complete;
}

bool Keeper::answer_wait(Client& client, bool timed_out) {
  if (client.waits == Client::Wait::deflation) {
    const std::uint64_t pages = engine_->deflated_pages();
    if (pages == client.known && !timed_out) {
      return true;
    }
    client.waits = Client::Wait::none;
    return send_message(client.fd.get(), DeflationReply{pages});
  }
  take_refaults();
  if (backlog_.empty() && backlog_complete_ && !timed_out) {
    return true;
  }
  DrainReply reply;
  reply.count = static_cast<std::uint32_t>(std::min(backlog_.size(), kMaxRanges));
  std::copy_n(backlog_.begin(), reply.count, reply.ranges.begin());
  reply.complete = backlog_complete_ ? 1 : 0;
  backlog_.erase(backlog_.begin(), backlog_.begin() + reply.count);
  backlog_complete_ = true;
  client.waits = Client::Wait::none;
  return send_message(client.fd.get(), reply);
}

bool Keeper::reply_hello(const Client& client) const {
  HelloReply reply;
  reply.pid = ram_.pid();
  reply.start_time = ram_.process().start_time;
  reply.refaults = options_.refaults;
  reply.backing_count = static_cast<std::uint32_t>(ram_.backings().size());
  for (std::size_t i = 0; i < ram_.backings().size(); ++i) {
    const Backing& backing = ram_.backings()[i];
    reply.backings[i] = {backing.device, backing.inode, backing.size.count()};
  }
  return send_message(client.fd.get(), reply);
}

bool Keeper::reply_stats(const Client& client) const {
  StatsReply reply;
  reply.engine = engine_->stats();
  reply.refaulted_pages = engine_->refaulted_pages();
  reply.refused_pieces = discarder_->refused_pieces();
  for (std::uint32_t i = 0; i < watched_->objects().size(); ++i) {
    reply.absent_pages += options_.refaults == RefaultMode::kernel
                              ? 0
                              : watched_->frames(i).count(FrameState::absent);
    reply.lost = reply.lost != 0 || watched_->lost(i) ? 1 : 0;
  }
  reply.serving = engine_->serving() ? 1 : 0;
  return send_message(client.fd.get(), reply);
}

}  // namespace fileballoon::faultd
