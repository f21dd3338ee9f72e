#include "uffd/range_filler.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "uffd/fault_engine.h"

namespace fileballoon {
namespace {

void bump(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) {
  counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

AddressRange one_page(std::uint64_t address) { return {address, Bytes(kPageSize)}; }

// What the waiter of a fault gets before it goes on, and what is then filled at a time: pages. A
// thread that catches up waits for the end of a piece, and being woken costs it ten microseconds.
constexpr std::uint64_t kFirstPiece = 8;
constexpr std::uint64_t kPiece = 64;

}  // namespace

RangeFiller::RangeFiller(WatchedRam& ram, Resolver resolver, PageSource* source)
    : ram_(ram), resolver_(resolver), source_(source), own_(ram.objects().size(), nullptr) {
  zeros_ = ::mmap(nullptr, RangeLocks::kPiece.count(), PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (zeros_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "mapping zeros for filling");
  }
  // Base pages: a huge zero page would be read through 2 MiB of cache.
  (void)::madvise(zeros_, RangeLocks::kPiece.count(), MADV_NOHUGEPAGE);
  (void)::madvise(zeros_, RangeLocks::kPiece.count(), MADV_POPULATE_READ);
  if (resolver != Resolver::populate) {
    return;
  }
  for (std::size_t i = 0; i < own_.size(); ++i) {
    const RamObject& object = ram.objects()[i];
    if (object.fd < 0) {
      continue;
    }
    void* at =
        ::mmap(nullptr, object.size.count(), PROT_READ | PROT_WRITE, MAP_SHARED, object.fd, 0);
    if (at == MAP_FAILED) {
      throw std::system_error(errno, std::generic_category(), "mapping guest RAM for filling");
    }
    own_[i] = at;
  }
}

RangeFiller::~RangeFiller() {
  ::munmap(zeros_, RangeLocks::kPiece.count());
  for (std::size_t i = 0; i < own_.size(); ++i) {
    if (own_[i] != nullptr) {
      ::munmap(own_[i], ram_.objects()[i].size.count());
    }
  }
}

RangeFiller::Outcome RangeFiller::fill(const Request& request) {
  if (request.state == FrameState::paged && source_ != nullptr) {
    return fill_content(request);
  }
  const bool zeros = !request.minor && (resolver_ == Resolver::zeropage ||
                                        ram_.objects()[request.region->object].fd < 0);
  Outcome outcome = zeros ? fill_in_pieces(request) : fill_range(request);
  if (outcome.status == Status::no_memory && request.count > 1) {
    // The host is short: bring back what is waited for, and nothing ahead.
    Request single = request;
    single.first = request.fault;
    single.count = 1;
    outcome = fill_range(single);
  }
  if (outcome.status == Status::filled) {
    bump(counters_.pages, outcome.count);
  } else if (outcome.status == Status::no_memory) {
    bump(counters_.no_memory);
  } else if (outcome.status == Status::gone) {
    bump(counters_.vanished);
  }
  return outcome;
}

// The waiter goes on with the first piece, and finds the others there when it comes to them: in the
// direction in which it goes through memory, which is where the range lies from the fault.
RangeFiller::Outcome RangeFiller::fill_in_pieces(const Request& request) {
  const std::uint64_t end = request.first + request.count;
  const bool down = request.fault + 1 == end;
  Request piece = request;
  piece.count =
      static_cast<std::uint32_t>(std::min(kFirstPiece, down ? request.count : end - request.fault));
  piece.first = down ? end - piece.count : request.fault;
  Outcome all = fill_range(piece);
  if (all.status != Status::filled || all.count == request.count) {
    return all;
  }
  all.woken_at = std::chrono::steady_clock::now();
  const auto add = [&](std::uint64_t first, std::uint64_t count) {
    piece.first = first;
    piece.count = static_cast<std::uint32_t>(count);
    const bool there = fill_range(piece).status == Status::filled;
    if (there) {
      all.first = std::min(all.first, first);
      all.count += piece.count;
    }
    return there;  // else nobody waits for it, and a fault there finds out what is wrong
  };
  while (all.first + all.count < end &&
         add(all.first + all.count, std::min(kPiece, end - all.first - all.count))) {
  }
  while (all.first > request.first) {
    const std::uint64_t count = std::min(kPiece, all.first - request.first);
    if (!add(all.first - count, count)) {
      break;
    }
  }
  return all;
}

RangeFiller::Outcome RangeFiller::fill_range(const Request& request) {
  const WatchedRam::Region& region = *request.region;
  const Userfaultfd& uffd = ram_.shard_of(region);
  const AddressRange range{region.address_of(request.first), Bytes::pages(request.count)};
  const bool shared = ram_.objects()[region.object].fd >= 0;
  UffdStatus status = UffdStatus::done;
  if (request.minor) {
    status = uffd.continue_(range, Wake::yes).status;
    if (status == UffdStatus::exists) {
      status = uffd.wake(range).status;
    } else if (status == UffdStatus::poisoned) {
      // Punched since the fault: no page to continue with. The retry arrives as MISSING.
      status = uffd.wake(range).status;
    }
  } else if (resolver_ == Resolver::zeropage || !shared) {
    status = fill_zeros(uffd, range, shared);
  } else {
    status = back(request, resolver_ == Resolver::continue_);
  }
  switch (status) {
    case UffdStatus::done:
      return {Status::filled, request.first, request.count};
    case UffdStatus::again:
      return {Status::later, 0, 0};
    case UffdStatus::no_memory:
      return {Status::no_memory, 0, 0};
    default:
      // Unmapped, remapped, or the process is exiting: the thread's retry finds out for itself.
      (void)uffd.wake(one_page(region.address_of(request.fault)));
      return {Status::gone, 0, 0};
  }
}

// Every part of the range is mapped and woken when this returns `done`.
UffdStatus RangeFiller::fill_zeros(const Userfaultfd& uffd, AddressRange range, bool shared) {
  while (range.size.count() > 0) {
    const UffdOutcome outcome =
        shared ? uffd.zeropage(range, Wake::yes) : uffd.copy(range, zeros_, Wake::yes);
    if (outcome.status == UffdStatus::done) {
      return UffdStatus::done;
    }
    range.start += outcome.completed.count();
    range.size = range.size - outcome.completed;
    if (outcome.completed.count() > 0) {
      continue;  // the next call says what stopped this one
    }
    if (outcome.status != UffdStatus::exists) {
      return outcome.status;
    }
    bump(counters_.already_present);
    (void)uffd.wake(one_page(range.start));
    range.start += kPageSize;
    range.size = range.size - Bytes(kPageSize);
  }
  return UffdStatus::done;
}

// Puts memory into the object itself; the VMM's page tables follow by CONTINUE or by themselves.
UffdStatus RangeFiller::back(const Request& request, bool continue_after) {
  const WatchedRam::Region& region = *request.region;
  const RamObject& object = ram_.objects()[region.object];
  const Userfaultfd& uffd = ram_.shard_of(region);
  AddressRange range{region.address_of(request.first), Bytes::pages(request.count)};
  const std::uint64_t offset = request.first * kPageSize;
  int result = 0;
  if (resolver_ == Resolver::populate) {
    // MADV_POPULATE_WRITE (5.14) allocates and maps the pages here.
    result = ::madvise(static_cast<char*>(own_[region.object]) + offset, range.size.count(),
                       MADV_POPULATE_WRITE);
  } else {
    result = ::fallocate(object.fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                         static_cast<off_t>(range.size.count()));
  }
  if (result != 0) {
    if (errno == EINTR || errno == EAGAIN) {
      return UffdStatus::again;
    }
    return UffdStatus::no_memory;  // ENOMEM, ENOSPC; EFAULT where a tmpfs is full (SIGBUS
                                   // otherwise)
  }
  if (!continue_after) {
    return uffd.wake(range).status;
  }
  while (range.size.count() > 0) {
    const UffdOutcome outcome = uffd.continue_(range, Wake::yes);
    if (outcome.status == UffdStatus::done) {
      return UffdStatus::done;
    }
    range.start += outcome.completed.count();
    range.size = range.size - outcome.completed;
    if (outcome.completed.count() > 0) {
      continue;
    }
    if (outcome.status != UffdStatus::exists) {
      return outcome.status;
    }
    bump(counters_.already_present);
    (void)uffd.wake(one_page(range.start));
    range.start += kPageSize;
    range.size = range.size - Bytes(kPageSize);
  }
  return UffdStatus::done;
}

RangeFiller::Outcome RangeFiller::fill_content(const Request& request) {
  const WatchedRam::Region& region = *request.region;
  const Userfaultfd& uffd = ram_.shard_of(region);
  const std::uint64_t address = region.address_of(request.fault);
  const PageSource::Content content =
      source_->fetch(region.object, request.first, request.count, request.fault);
  if (content.status == PageSource::Content::Status::later) {
    return {Status::lost, 0, 0};
  }
  if (content.status == PageSource::Content::Status::lost) {
    // Page-out leaves markers. Where it cannot be poisoned, the thread goes on waiting: never
    // zeros, never stale data.
    if (uffd.poison_marked(one_page(address), Wake::yes).status != UffdStatus::done) {
      return {Status::lost, 0, 0};
    }
    bump(counters_.poisoned);
    return {Status::filled, request.fault, 0};
  }
  UffdOutcome outcome = uffd.copy({region.address_of(content.first), Bytes::pages(content.count)},
                                  content.data, Wake::yes);
  std::uint64_t first = content.first;
  std::uint64_t count = outcome.completed.whole_pages();
  if (first + count <= request.fault) {
    // Stopped before the page that is waited for (a page brought back by other means): that one
    // alone, so that its waiter goes on.
    if (count > 0) {
      source_->filled(region.object, first, static_cast<std::uint32_t>(count));
      ram_.frames(region.object).set(first, count, FrameState::backed);
    }
    outcome = uffd.copy(one_page(address),
                        content.data + (request.fault - content.first) * kPageSize, Wake::yes);
    first = request.fault;
    count = outcome.completed.whole_pages();
  }
  if (count == 0) {
    switch (outcome.status) {
      case UffdStatus::exists:
        bump(counters_.already_present);
        (void)uffd.wake(one_page(address));
        count = 1;
        break;
      case UffdStatus::again:
        return {Status::later, 0, 0};
      case UffdStatus::no_memory:
        bump(counters_.no_memory);
        return {Status::no_memory, 0, 0};
      default:
        bump(counters_.vanished);
        (void)uffd.wake(one_page(address));
        return {Status::gone, 0, 0};
    }
  }
  bump(counters_.content_pages, count);
  source_->filled(region.object, first, static_cast<std::uint32_t>(count));
  return {Status::filled, first, static_cast<std::uint32_t>(count), {}, content.slept};
}

}  // namespace fileballoon
