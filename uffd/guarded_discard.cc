#include "uffd/guarded_discard.h"

#include <fcntl.h>
#include <sched.h>

#include <bitset>
#include <cerrno>
#include <system_error>

namespace fileballoon {
namespace {

// Pages that are paged out look like discarded ones to the kernel, and are not: they keep their
// content, in a store.
void mark_absent(FrameMap& frames, std::uint64_t first, std::uint64_t count) {
  const std::uint64_t end = first + count;
  while (first < end) {
    if (const std::uint64_t paged = frames.run(first, end - first, FrameState::paged); paged > 0) {
      first += paged;
      continue;
    }
    std::uint64_t run = 1;
    while (first + run < end && frames.state(first + run) != FrameState::paged) {
      ++run;
    }
    frames.set(first, run, FrameState::absent);
    first += run;
  }
}

}  // namespace

GuardedDiscarder::GuardedDiscarder(WatchedRam& ram, Options options)
    : ram_(ram), options_(options) {
  for (const RamObject& object : ram.objects()) {
    if (object.local && !pagemap_.valid()) {
      pagemap_ = UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
      if (!pagemap_.valid()) {
        throw std::system_error(errno, std::generic_category(),
                                "opening /proc/self/pagemap, which tells present pages");
      }
    }
  }
}

bool GuardedDiscarder::arm(std::uint32_t object, HostRange piece) {
  bool armed = true;
  Bytes covered;
  ram_.for_each_place(object, piece, [&](const WatchedRam::Region& region, AddressRange where) {
    UffdOutcome outcome = ram_.shard_of(region).protect(where);
    // EAGAIN: an event waits to be read by the engine's reader, which takes microseconds.
    for (int i = 0; outcome.status == UffdStatus::again && i < 1000; ++i) {
      ::sched_yield();
      outcome = ram_.shard_of(region).protect(where);
    }
    if (outcome.status != UffdStatus::done) {
      armed = false;
      if (outcome.status != UffdStatus::again) {
        ram_.mark_lost(object);
      }
    }
    covered += where.size;
  });
  // A part that is mapped nowhere can be written by nobody through a mapping, but neither is it
  // known to be RAM of this guest.
  return armed && covered >= piece.size;
}

void GuardedDiscarder::disarm(std::uint32_t object, HostRange piece) {
  // Also where the page is gone: its write-protection marker survives the punch, and a page that
  // comes back by the kernel's or the VMM's own doing would start write-protected.
  ram_.for_each_place(object, piece, [&](const WatchedRam::Region& region, AddressRange where) {
    (void)ram_.shard_of(region).unprotect(where, Wake::yes);
  });
  // Pages that the pager was writing out are guarded no more; it looks again before it punches.
  FrameMap& frames = ram_.frames(object);
  const std::uint64_t first = piece.start.bytes() / kPageSize;
  for (std::uint64_t page = first; page < first + piece.pages(); ++page) {
    (void)frames.change(page, FrameState::guarded, FrameState::backed);
  }
}

DiscardOutcome GuardedDiscarder::discard_shared(std::uint32_t object, HostRange piece) {
  DiscardOutcome outcome;
  if (options_.arm && !arm(object, piece)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    outcome.failed = static_cast<std::uint32_t>(piece.pages());
  } else {
    outcome = discard_piece(ShmemPages(ram_.objects()[object].fd), piece,
                            [&](std::uint64_t first, std::uint64_t count) {
                              mark_absent(ram_.frames(object), first, count);
                            });
  }
  if (options_.arm) {
    disarm(object, piece);
  }
  return outcome;
}

DiscardOutcome GuardedDiscarder::discard_local(std::uint32_t object, HostRange piece) {
  const RamObject& memory = ram_.objects()[object];
  FrameMap& frames = ram_.frames(object);
  const std::uint64_t first_page = piece.start.bytes() / kPageSize;
  std::bitset<ZeroMap::kMaxPages> handed_over;
  if (memory.lazy) {
    for (std::size_t i = 0; i < piece.pages(); ++i) {
      handed_over.set(i, frames.state(first_page + i) == FrameState::absent);
    }
  }
  // Its offsets count from its one mapping.
  LocalPages pages(reinterpret_cast<std::byte*>(memory.mappings[0].address), pagemap_.get(),
                   memory.lazy ? LocalDiscard::free : LocalDiscard::dont_need);
  pages.snapshot(piece, handed_over);
  DiscardOutcome outcome;
  if (options_.arm && !arm(object, piece)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    outcome.failed = static_cast<std::uint32_t>(piece.pages());
    disarm(object, piece);
    return outcome;
  }
  outcome = discard_piece(pages, piece, [&](std::uint64_t first, std::uint64_t count) {
    frames.set(first, count, FrameState::absent);
  });
  if (!options_.arm) {
    return outcome;
  }
  if (!memory.lazy) {
    disarm(object, piece);
    return outcome;
  }
  // What was handed over stays armed: its next write is how we learn that it is in use again.
  for (std::uint64_t at = first_page; at < first_page + piece.pages();) {
    const std::uint64_t left = first_page + piece.pages() - at;
    if (const auto handed = frames.run(at, left, FrameState::absent); handed > 0) {
      at += handed;
      continue;
    }
    std::uint64_t count = 1;
    while (count < left && frames.state(at + count) != FrameState::absent) {
      ++count;
    }
    disarm(object, {HostOffset(at * kPageSize), Bytes::pages(count)});
    at += count;
  }
  return outcome;
}

DiscardOutcome GuardedDiscarder::discard_locked(std::uint32_t object, HostRange piece) {
  const RamObject& memory = ram_.objects()[object];
  DiscardOutcome outcome;
  if (options_.arm && ram_.lost(object)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    outcome.failed = static_cast<std::uint32_t>(piece.pages());
    return outcome;
  }
  if (memory.fd >= 0) {
    return discard_shared(object, piece);
  }
  if (memory.local) {
    return discard_local(object, piece);
  }
  // Private memory of another process: only that process can discard it.
  outcome.failed = static_cast<std::uint32_t>(piece.pages());
  return outcome;
}

DiscardOutcome GuardedDiscarder::discard(std::uint32_t backing, HostRange range) {
  DiscardOutcome outcome;
  if (backing >= ram_.objects().size()) {
    outcome.failed = static_cast<std::uint32_t>(range.pages());
    return outcome;
  }
  ram_.locks().for_each_piece(backing, clip(range, ram_.objects()[backing].size, outcome),
                              [&](HostRange piece) { outcome += discard_locked(backing, piece); });
  return outcome;
}

}  // namespace fileballoon
