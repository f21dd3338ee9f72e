#include "uffd/pager/paging_host.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <system_error>

namespace fileballoon::faultd {
namespace {

template <std::size_t N>
std::string text_of(const std::array<char, N>& field) {
  return {field.data(), ::strnlen(field.data(), N)};
}

template <std::size_t N>
void put_text(const std::string& text, std::array<char, N>& field) {
  field.fill(0);
  std::copy_n(text.begin(), std::min(text.size(), N - 1), field.begin());
}

}  // namespace

PagingHost::~PagingHost() {
  if (opener_.joinable()) {
    opener_.join();
  }
  if (guard_) {
    ram_.leave_registered();  // or the guest would read zeros in place of what is paged out
    guard_.reset();
  }
  unmark();
}

void PagingHost::unmark() {
  if (marked_) {
    ::unlink(paging_marker(socket_).c_str());
    marked_ = false;
  }
}

void PagingHost::answer(const PagingRequest& request, PagingReply& reply) {
  adopt();
  Result<void> done{};
  if (request.magic != kPagingMagic || request.version != kPagingVersion) {
    done = Error{"the fault keeper is of another version of fileballoon; restart the VM's paging"};
  } else if (request.verb == PagingVerb::start) {
    done = start(request);
  } else if (request.verb == PagingVerb::status) {
    // below
  } else if (!paging_) {
    done = Error{"paging has not been started for this VM"};
  } else if (request.verb == PagingVerb::set_goal) {
    paging_->set_goal(Bytes(request.goal));
  } else if (request.verb == PagingVerb::clear_goal) {
    paging_->clear_goal();
  } else if (request.verb == PagingVerb::set_ceiling) {
    paging_->set_ceiling(request.goal == kNoCeiling ? std::nullopt
                                                    : std::optional(Bytes(request.goal)));
  } else if (request.verb == PagingVerb::set_limit) {
    paging_->set_limit(Bytes(request.goal));
  } else if (request.verb == PagingVerb::page_in) {
    done = paging_->begin_detach();
  } else {
    done = Error{"unknown paging request"};
  }
  report(reply);
  reply.ok = done.has_error() ? 0 : 1;
  if (done.has_error() || !paging_) {
    put_text(done.has_error() ? done.error().message : start_error_, reply.message);
  }
}

Result<void> PagingHost::start(const PagingRequest& request) {
  if (ram_.options().mode != RefaultMode::engine) {
    return Error{
        "the kernel answers this VM's refaults: paging needs it attached with --refault uffd"};
  }
  if (starting_) {
    return Error{"the store of this VM is being opened already"};
  }
  if (paging_ && !paging_->detach_state().finished) {
    return Error{"paging has been started for this VM already"};
  }
  if (paging_) {
    return Error{"this VM's pages have been brought back; attach it anew to page it again"};
  }
  PagingOptions options;
  options.vm = text_of(request.vm);
  options.memory = Bytes(request.memory);
  options.compression = request.compression == 0 ? Compression::lz4 : Compression::zstd;
  options.path = text_of(request.path);
  options.file = Bytes(request.file);
  options.daily_writes = Bytes(request.daily_writes);
  options.budget_file = text_of(request.budget_file);
  start_error_.clear();
  opened_ = false;
  try {
    opener_ = std::thread([this, options] {
      try {
        outcome_ = starter_(ram_, pid_, options);
      } catch (const std::exception& error) {
        outcome_ = Error{std::string("cannot start paging: ") + error.what()};
      }
      opened_ = true;
    });
  } catch (const std::system_error& error) {
    return Error{std::string("cannot start the thread that opens the store: ") + error.what()};
  }
  starting_ = true;
  return {};
}

// What the opener has made, if it is done.
void PagingHost::adopt() {
  if (!starting_ || !opened_) {
    return;
  }
  opener_.join();
  starting_ = false;
  Result<std::unique_ptr<Paging>> outcome = std::move(outcome_);
  outcome_ = Error{};
  const Result<void> taken =
      outcome ? take_over(std::move(*outcome)) : Result<void>(outcome.error());
  if (!taken) {
    start_error_ = taken.error().message;
  }
}

Result<void> PagingHost::take_over(std::unique_ptr<Paging> paging) {
  const std::string marker = paging_marker(socket_);
  const UniqueFd fd(::open(marker.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) {
    return Error{"cannot create " + marker + ": " + std::strerror(errno)};
  }
  marked_ = true;
  auto guard = KeeperGuard::start(ram_.shards(), pid_);
  if (!guard) {
    unmark();
    return guard.error();
  }
  guard_ = std::move(*guard);
  paging_ = std::move(paging);
  source_.use(&paging_->pager());
  return {};
}

bool PagingHost::leave() {
  adopt();
  if (starting_) {
    return false;
  }
  if (!paging_) {
    return true;
  }
  // Without a thread for it: the next call tries again.
  if (!paging_->begin_detach() || !paging_->detach_state().finished) {
    return false;
  }
  if (guard_) {
    guard_->dismiss();
    guard_.reset();
  }
  unmark();
  return true;
}

void PagingHost::report(PagingReply& reply) {
  reply.starting = starting_ ? 1 : 0;
  if (!paging_) {
    return;
  }
  const PagerService::Status status = paging_->status();
  reply.active = 1;
  reply.state = static_cast<std::uint32_t>(status.state);
  reply.stop_reason = static_cast<std::uint32_t>(status.stop_reason);
  reply.method = static_cast<std::uint32_t>(status.method);
  reply.footprint = status.footprint.count();
  reply.goal = status.goal.count();
  reply.held_faults = status.held_faults;
  reply.ceiling = status.ceiling ? status.ceiling->count() : kNoCeiling;
  const PagerStats& pager = status.pager;
  reply.paged_pages = pager.paged_pages;
  reply.paged_out = pager.paged_out;
  reply.zero_pages = pager.zero_pages;
  reply.paged_in = pager.paged_in;
  reply.faults = pager.faults;
  reply.read_ahead = pager.read_ahead;
  reply.write_races = pager.write_races;
  reply.rejected = pager.rejected;
  reply.lost_pages = pager.lost_pages;
  reply.metadata = pager.metadata.count();
  reply.store_memory = pager.store.memory.count();
  reply.store_disk = pager.store.disk.count();
  reply.store_limit = pager.store.limit.count();
  reply.file_pages = pager.store.file_pages;
  reply.spilled = pager.store.spilled;
  const Paging::Detach detach = paging_->detach_state();
  reply.detach_started = detach.started ? 1 : 0;
  reply.detach_finished = detach.finished ? 1 : 0;
  reply.detach_done = detach.progress.done;
  reply.detach_total = detach.progress.total;
  reply.detach_lost = detach.progress.lost;
  const std::uint64_t dropped = paging_->pager().events().drain([&](const PagerEvent& event) {
    if (reply.event_count < reply.events.size()) {
      reply.events[reply.event_count++] = {static_cast<std::uint32_t>(event.kind),
                                           static_cast<std::uint32_t>(event.status), event.object,
                                           0, event.page};
    }
  });
  reply.events_dropped = static_cast<std::uint32_t>(dropped);
}

}  // namespace fileballoon::faultd
