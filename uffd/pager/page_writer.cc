#include "uffd/pager/page_writer.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "uffd/zero_check.h"

namespace fileballoon {

PageWriter::Outcome PageWriter::write(std::uint32_t object, std::span<const std::uint64_t> pages) {
  Outcome outcome;
  if (pages.empty()) {
    return outcome;
  }
  runs_.clear();
  if (!guard(object, pages)) {
    return outcome;
  }
  store(object, outcome);
  commit(object, outcome);
  Pager::Counters& counters = pager_.counters();
  counters.paged_out.fetch_add(outcome.stored, std::memory_order_relaxed);
  counters.zero.fetch_add(outcome.zero, std::memory_order_relaxed);
  counters.write_races.fetch_add(outcome.raced, std::memory_order_relaxed);
  counters.rejected.fetch_add(outcome.rejected, std::memory_order_relaxed);
  return outcome;
}

void PageWriter::keep_zero(std::uint32_t object, std::vector<std::uint64_t>& pages) {
  const int fd = pager_.ram().objects()[object].fd;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < pages.size();) {
    Run run{pages[i], 0, 0};
    while (i < pages.size() && pages[i] == run.first + run.count && run.count < kBatch) {
      ++run.count;
      ++i;
    }
    if (!read(fd, run)) {
      continue;
    }
    for (std::uint32_t j = 0; j < run.count; ++j) {
      if (is_zero(buffer_.page(j), kPageSize)) {
        pages[kept++] = run.first + j;
      }
    }
  }
  pages.resize(kept);
}

// Marks and write-protects, in runs.
bool PageWriter::guard(std::uint32_t object, std::span<const std::uint64_t> pages) {
  WatchedRam& ram = pager_.ram();
  FrameMap& frames = ram.frames(object);
  const std::lock_guard lock(ram.locks().of(object, HostOffset(pages.front() * kPageSize)));
  if (ram.lost(object)) {
    return false;
  }
  std::size_t batch = 0;
  for (std::size_t i = 0; i < pages.size() && batch < kBatch; ++i) {
    if (!frames.change(pages[i], FrameState::backed, FrameState::guarded)) {
      continue;
    }
    if (runs_.empty() || runs_.back().first + runs_.back().count != pages[i]) {
      runs_.push_back({pages[i], 0, batch});
    }
    ++runs_.back().count;
    ++batch;
  }
  bool armed = true;
  for (const Run& run : runs_) {
    Bytes covered;
    const HostRange range{HostOffset(run.first * kPageSize), Bytes::pages(run.count)};
    ram.for_each_place(object, range, [&](const WatchedRam::Region& region, AddressRange where) {
      UffdOutcome outcome = ram.shard_of(region).protect(where);
      // EAGAIN: an event waits to be read by the engine's reader, which takes microseconds.
      for (int i = 0; outcome.status == UffdStatus::again && i < 1000; ++i) {
        ::sched_yield();
        outcome = ram.shard_of(region).protect(where);
      }
      armed = armed && outcome.status == UffdStatus::done;
      covered += where.size;
    });
    // What is mapped nowhere, or only partly, is not known to be this guest's RAM.
    armed = armed && covered >= range.size;
  }
  if (!armed) {
    for (const Run& run : runs_) {
      let_go(object, run.first, run.count, Marks::taken);
      frames.set(run.first, run.count, FrameState::backed);
    }
  }
  return armed && !runs_.empty();
}

// Through the descriptor: a mapping of ours would fault on every page, keep the access tracker from
// unmapping it (it wants pages mapped once), and back holes by looking at them.
bool PageWriter::read(int fd, const Run& run) {
  const std::size_t length = run.count * kPageSize;
  return ::pread(fd, buffer_.page(run.at), length, static_cast<off_t>(run.first * kPageSize)) ==
         static_cast<ssize_t>(length);
}

void PageWriter::store(std::uint32_t object, Outcome& outcome) {
  const int fd = pager_.ram().objects()[object].fd;
  puts_.clear();
  for (const Run& run : runs_) {
    const bool good = read(fd, run);
    for (std::uint32_t i = 0; i < run.count; ++i) {
      const std::size_t at = run.at + i;
      fate_[at] = Fate::keep;
      if (!good) {
        continue;
      }
      if (is_zero(buffer_.page(at), kPageSize)) {
        fate_[at] = Fate::zero;
        continue;
      }
      puts_.push_back({pager_.key_of(object, run.first + i), buffer_.page(at)});
      // Where the batch index is found again after put().
      slot_[puts_.size() - 1] = Slot{static_cast<std::uint32_t>(at)};
    }
  }
  if (puts_.empty()) {
    return;
  }
  (void)pager_.store().put(puts_);  // each page has its status
  const std::array<Slot, kBatch> index = slot_;
  for (std::size_t i = 0; i < puts_.size(); ++i) {
    const std::size_t at = index[i].value;
    switch (puts_[i].status) {
      case StoreStatus::ok:
        fate_[at] = Fate::stored;
        slot_[at] = puts_[i].slot;
        break;
      case StoreStatus::rejected:
        fate_[at] = Fate::rejected;
        ++outcome.rejected;
        break;
      default:
        outcome.status = puts_[i].status;
        break;
    }
  }
}

void PageWriter::commit(std::uint32_t object, Outcome& outcome) {
  WatchedRam& ram = pager_.ram();
  FrameMap& frames = ram.frames(object);
  const std::lock_guard lock(ram.locks().of(object, HostOffset(runs_.front().first * kPageSize)));
  for (const Run& run : runs_) {
    for (std::uint32_t i = 0; i < run.count;) {
      const std::uint64_t page = run.first + i;
      const std::size_t at = run.at + i;
      const bool guarded = frames.state(page) == FrameState::guarded;
      if (guarded && ready_to_go(object, page, at)) {
        // As many as go together, with one punch.
        std::uint32_t count = 1;
        while (i + count < run.count && frames.state(page + count) == FrameState::guarded &&
               ready_to_go(object, page + count, at + count)) {
          ++count;
        }
        commit_run(object, {page, count, at}, outcome);
        i += count;
        continue;
      }
      if (fate_[at] == Fate::stored) {
        drop(at);
      }
      if (guarded) {
        let_go(object, page, 1, Marks::taken);
        frames.set(page, 1, FrameState::backed);
        if (fate_[at] == Fate::rejected) {
          pager_.ages(object).set(page, 0);
        }
      } else {
        ++outcome.raced;
      }
      ++i;
    }
  }
}

// In the book before it is gone from memory: what cannot be entered stays where it is.
bool PageWriter::ready_to_go(std::uint32_t object, std::uint64_t page, std::size_t at) {
  if (fate_[at] == Fate::stored && !pager_.enter(pager_.key_of(object, page), slot_[at])) {
    drop(at);
    fate_[at] = Fate::keep;
  }
  return goes(fate_[at]);
}

void PageWriter::commit_run(std::uint32_t object, const Run& run, Outcome& outcome) {
  WatchedRam& ram = pager_.ram();
  FrameMap& frames = ram.frames(object);
  const int fd = ram.objects()[object].fd;
  const HostRange range{HostOffset(run.first * kPageSize), Bytes::pages(run.count)};
  (void)::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(range.start.bytes()),
                    static_cast<off_t>(range.size.count()));
  // The punch's result is not the proof: inside a huge page that does not split it returns 0,
  // zeroes the page and frees nothing.
  const bool any_left = backed_pages(fd, range) > 0;
  for (std::uint32_t i = 0; i < run.count; ++i) {
    const std::uint64_t page = run.first + i;
    const std::size_t at = run.at + i;
    const bool left =
        any_left && backed_pages(fd, {HostOffset(page * kPageSize), Bytes::pages(1)}) > 0;
    if (!left) {
      frames.set(page, 1, fate_[at] == Fate::zero ? FrameState::absent : FrameState::paged);
      ++(fate_[at] == Fate::zero ? outcome.zero : outcome.stored);
      continue;
    }
    // Put back from our copy, before anybody can look: readers of the page wait for our lock only
    // where it is a hole, which is why create() refuses memory with huge pages.
    outcome.huge_page = true;
    const bool back = ::pwrite(fd, buffer_.page(at), kPageSize,
                               static_cast<off_t>(page * kPageSize)) == kPageSize;
    if (fate_[at] == Fate::zero || back) {
      if (fate_[at] == Fate::stored) {
        pager_.withdraw(pager_.key_of(object, page));
      }
      frames.set(page, 1, FrameState::backed);
      continue;
    }
    // The copy in the store is all there is: it stays, for page_in_all() to try again.
    frames.set(page, 1, FrameState::paged);
    ++outcome.stored;
  }
  // Whoever was caught writing goes on: into a fault that the engine answers with the content.
  // Holes keep their write-protection markers, which UFFDIO_COPY and UFFDIO_ZEROPAGE fill like
  // empty entries (pte_none_mostly(), Linux 5.19): taking them away would be another walk and
  // another TLB flush.
  let_go(object, run.first, run.count, outcome.huge_page ? Marks::taken : Marks::left);
}

void PageWriter::let_go(std::uint32_t object, std::uint64_t first, std::uint64_t count,
                        Marks marks) {
  WatchedRam& ram = pager_.ram();
  const HostRange range{HostOffset(first * kPageSize), Bytes::pages(count)};
  ram.for_each_place(object, range, [&](const WatchedRam::Region& region, AddressRange where) {
    const Userfaultfd& uffd = ram.shard_of(region);
    (void)(marks == Marks::taken ? uffd.unprotect(where, Wake::yes) : uffd.wake(where));
  });
}

void PageWriter::drop(std::size_t at) { pager_.store().free(slot_[at]); }

}  // namespace fileballoon
