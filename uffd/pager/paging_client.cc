#include "uffd/pager/paging_client.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>

#include "uffd/faultd/packet_socket.h"

namespace fileballoon::faultd {
namespace {

// A keeper answers in microseconds; a machine that thrashes may take long. It is never killed for
// it.
constexpr std::chrono::seconds kPatience{10};

template <std::size_t N>
bool put_text(const std::string& text, std::array<char, N>& field) {
  if (text.size() >= N) {
    return false;
  }
  std::copy(text.begin(), text.end(), field.begin());
  return true;
}

template <std::size_t N>
std::string text_of(const std::array<char, N>& field) {
  return {field.data(), ::strnlen(field.data(), N)};
}

}  // namespace

Result<PagingClient> PagingClient::connect(std::string socket) {
  PagingClient client(std::move(socket));
  if (const auto opened = client.open(); opened.has_error()) {
    return opened.error();
  }
  return client;
}

Result<void> PagingClient::open() {
  auto fd = connect_keeper(socket_);
  if (fd.has_error()) {
    return Error{fd.error().message + "; paging needs a VM attached with --refault uffd"};
  }
  fd_ = std::move(*fd);
  return {};
}

Result<PagingReply> PagingClient::ask(const PagingRequest& request) {
  const bool fresh = !fd_.valid();
  if (fresh) {
    if (const auto opened = open(); opened.has_error()) {
      return opened.error();
    }
  }
  auto reply = std::make_unique<PagingReply>();
  if (!send_packet(fd_.get(), request)) {
    fd_.reset();
    return fresh ? Error{"the fault keeper on " + socket_ + " went away"} : ask(request);
  }
  if (receive_packet(fd_.get(), *reply, kPatience) != Received::packet) {
    fd_.reset();
    return Error{"the fault keeper on " + socket_ + " gave no answer about paging"};
  }
  return *reply;
}

Result<void> PagingClient::command(const PagingRequest& request) {
  const auto reply = ask(request);
  if (!reply) {
    return reply.error();
  }
  if (reply->ok == 0) {
    return Error{text_of(reply->message)};
  }
  return {};
}

Result<void> PagingClient::start(const PagingOptions& options) {
  PagingRequest request;
  request.verb = PagingVerb::start;
  request.compression = options.compression == Compression::lz4 ? 0 : 1;
  request.memory = options.memory.count();
  request.file = options.file.count();
  request.daily_writes = options.daily_writes.count();
  if (!put_text(options.vm, request.vm) || !put_text(options.path, request.path) ||
      !put_text(options.budget_file, request.budget_file)) {
    return Error{"a VM's name is at most 255 bytes long, a store's path 1,023"};
  }
  if (auto begun = command(request); begun.has_error()) {
    return begun;
  }
  return wait_for_start();
}

Result<void> PagingClient::wait_for_start() {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const auto reply = ask(PagingRequest{});
    if (!reply) {
      return reply.error();
    }
    if (reply->active != 0) {
      return {};
    }
    if (reply->starting == 0) {
      return Error{reply->message[0] != 0 ? text_of(reply->message)
                                          : "paging has not been started for this VM"};
    }
    if (std::chrono::steady_clock::now() >= end) {
      return Error{"the store is still being opened; its disk is slow"};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Result<void> PagingClient::set_goal(Bytes footprint) {
  PagingRequest request;
  request.verb = PagingVerb::set_goal;
  request.goal = footprint.count();
  return command(request);
}

Result<void> PagingClient::clear_goal() {
  PagingRequest request;
  request.verb = PagingVerb::clear_goal;
  return command(request);
}

Result<void> PagingClient::set_ceiling(std::optional<Bytes> most) {
  PagingRequest request;
  request.verb = PagingVerb::set_ceiling;
  request.goal = most ? most->count() : kNoCeiling;
  return command(request);
}

Result<void> PagingClient::set_limit(Bytes paged) {
  PagingRequest request;
  request.verb = PagingVerb::set_limit;
  request.goal = paged.count();
  return command(request);
}

Result<PagingClient::Status> PagingClient::status() {
  const auto got = ask(PagingRequest{});
  if (!got) {
    return got.error();
  }
  const PagingReply& reply = *got;
  Status status;
  status.active = reply.active != 0;
  status.starting = reply.starting != 0;
  status.service.state = static_cast<PagerService::State>(reply.state);
  status.service.stop_reason = static_cast<StoreStatus>(reply.stop_reason);
  status.service.method = static_cast<AccessMethod>(reply.method);
  status.service.footprint = Bytes(reply.footprint);
  status.service.goal = Bytes(reply.goal);
  status.service.held_faults = reply.held_faults;
  PagerStats& pager = status.service.pager;
  pager.paged_pages = reply.paged_pages;
  pager.paged_out = reply.paged_out;
  pager.zero_pages = reply.zero_pages;
  pager.paged_in = reply.paged_in;
  pager.faults = reply.faults;
  pager.read_ahead = reply.read_ahead;
  pager.write_races = reply.write_races;
  pager.rejected = reply.rejected;
  pager.lost_pages = reply.lost_pages;
  pager.metadata = Bytes(reply.metadata);
  pager.store.pages = reply.paged_pages;
  pager.store.memory = Bytes(reply.store_memory);
  pager.store.disk = Bytes(reply.store_disk);
  pager.store.limit = Bytes(reply.store_limit);
  pager.store.file_pages = reply.file_pages;
  pager.store.spilled = reply.spilled;
  status.detach = {reply.detach_started != 0,
                   reply.detach_finished != 0,
                   {reply.detach_done, reply.detach_total, reply.detach_lost}};
  for (std::uint32_t i = 0; i < std::min<std::size_t>(reply.event_count, reply.events.size());
       ++i) {
    const PagingEventMessage& event = reply.events[i];
    status.events.push_back({static_cast<PagerEvent::Kind>(event.kind),
                             static_cast<StoreStatus>(event.status), event.object, event.page});
  }
  status.events_dropped = reply.events_dropped;
  return status;
}

Result<void> PagingClient::begin_page_in() {
  PagingRequest request;
  request.verb = PagingVerb::page_in;
  return command(request);
}

Result<Pager::Progress> PagingClient::page_in_all(
    const std::function<void(const Pager::Progress&)>& progress) {
  if (const auto begun = begin_page_in(); begun.has_error()) {
    return begun.error();
  }
  for (;;) {
    const auto now = status();
    if (!now) {
      return now.error();
    }
    progress(now->detach.progress);
    if (now->detach.finished) {
      return now->detach.progress;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace fileballoon::faultd
