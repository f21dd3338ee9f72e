#include "uffd/pager/page_writer.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "uffd/zero_check.h"

namespace fileballoon {

PageWriter::Outcome& PageWriter::Outcome::operator+=(const Outcome& other) {
  stored += other.stored;
  zero += other.zero;
  raced += other.raced;
  rejected += other.rejected;
  status = status == StoreStatus::ok ? other.status : status;
  huge_page = huge_page ? huge_page : other.huge_page;
  return *this;
}

PageWriter::Batch& PageWriter::free_batch() {
  const bool first_is_busy = under_way_ != nullptr && under_way_ == batches_[0].get();
  std::unique_ptr<Batch>& batch = batches_[first_is_busy ? 1 : 0];
  if (!batch) {
    batch = std::make_unique<Batch>();
    batch->runs.reserve(kBatch);
    batch->puts.reserve(kBatch);
  }
  return *batch;
}

PageWriter::Outcome PageWriter::write(std::uint32_t object, std::span<const std::uint64_t> pages) {
  Batch& batch = free_batch();
  batch.object = object;
  batch.runs.clear();
  batch.puts.clear();
  if (pages.empty() || !guard(batch, pages)) {
    return flush();
  }
  copy(batch);
  // The disk has the next batch before this one's memory is punched.
  Batch* before = std::exchange(under_way_, nullptr);
  if (before != nullptr) {
    pager_.store().finish();
  }
  const bool is_under_way = start(batch);
  Outcome outcome;
  if (before != nullptr) {
    outcome = finish(*before);
  }
  if (is_under_way) {
    under_way_ = &batch;
  } else {
    outcome += finish(batch);
  }
  return outcome;
}

// Whether the store works on it now.
bool PageWriter::start(Batch& batch) {
  if (batch.puts.empty()) {
    return false;
  }
  try {
    return pager_.store().start(batch.puts);
  } catch (const std::bad_alloc&) {
    for (PagePut& put : batch.puts) {
      put.status = StoreStatus::full;
    }
    return false;
  }
}

PageWriter::Outcome PageWriter::flush() {
  Batch* before = std::exchange(under_way_, nullptr);
  if (before == nullptr) {
    return {};
  }
  pager_.store().finish();
  return finish(*before);
}

std::uint32_t PageWriter::under_way() const {
  return under_way_ == nullptr ? 0 : under_way_->runs.back().at + under_way_->runs.back().count;
}

PageWriter::Outcome PageWriter::finish(Batch& batch) {
  Outcome outcome;
  note_fates(batch, outcome);
  commit(batch, outcome);
  Pager::Counters& counters = pager_.counters();
  counters.paged_out.fetch_add(outcome.stored, std::memory_order_relaxed);
  counters.zero.fetch_add(outcome.zero, std::memory_order_relaxed);
  counters.write_races.fetch_add(outcome.raced, std::memory_order_relaxed);
  counters.rejected.fetch_add(outcome.rejected, std::memory_order_relaxed);
  return outcome;
}

void PageWriter::keep_zero(std::uint32_t object, std::vector<std::uint64_t>& pages) {
  const int fd = pager_.ram().objects()[object].fd;
  Batch& looked_at = free_batch();
  std::size_t kept = 0;
  for (std::size_t i = 0; i < pages.size();) {
    Run run{pages[i], 0, 0};
    while (i < pages.size() && pages[i] == run.first + run.count && run.count < kBatch) {
      ++run.count;
      ++i;
    }
    if (!read(fd, looked_at, run)) {
      continue;
    }
    for (std::uint32_t j = 0; j < run.count; ++j) {
      if (is_zero(looked_at.buffer.page(j), kPageSize)) {
        pages[kept++] = run.first + j;
      }
    }
  }
  pages.resize(kept);
}

// Marks and write-protects, in runs.
bool PageWriter::guard(Batch& batch, std::span<const std::uint64_t> pages) {
  WatchedRam& ram = pager_.ram();
  const std::uint32_t object = batch.object;
  std::vector<Run>& runs = batch.runs;
  FrameMap& frames = ram.frames(object);
  const std::lock_guard lock(ram.locks().of(object, HostOffset(pages.front() * kPageSize)));
  if (ram.lost(object)) {
    return false;
  }
  std::size_t marked = 0;
  for (std::size_t i = 0; i < pages.size() && marked < kBatch; ++i) {
    if (!frames.change(pages[i], FrameState::backed, FrameState::guarded)) {
      continue;
    }
    if (runs.empty() || runs.back().first + runs.back().count != pages[i]) {
      runs.push_back({pages[i], 0, marked});
    }
    ++runs.back().count;
    ++marked;
  }
  bool armed = true;
  for (const Run& run : runs) {
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
    for (const Run& run : runs) {
      let_go(object, run.first, run.count, Marks::taken);
      frames.set(run.first, run.count, FrameState::backed);
    }
  }
  return armed && !runs.empty();
}

// Through the descriptor: a mapping of ours would fault on every page, keep the access tracker from
// unmapping it (it wants pages mapped once), and back holes by looking at them.
bool PageWriter::read(int fd, Batch& batch, const Run& run) {
  const std::size_t length = run.count * kPageSize;
  return ::pread(fd, batch.buffer.page(run.at), length,
                 static_cast<off_t>(run.first * kPageSize)) == static_cast<ssize_t>(length);
}

// The pages, and of those that are to be stored, what the store is to do.
void PageWriter::copy(Batch& batch) {
  const int fd = pager_.ram().objects()[batch.object].fd;
  for (const Run& run : batch.runs) {
    const bool good = read(fd, batch, run);
    for (std::uint32_t i = 0; i < run.count; ++i) {
      const std::size_t at = run.at + i;
      batch.fate[at] = Fate::keep;
      if (!good) {
        continue;
      }
      if (is_zero(batch.buffer.page(at), kPageSize)) {
        batch.fate[at] = Fate::zero;
        continue;
      }
      batch.at[batch.puts.size()] = static_cast<std::uint16_t>(at);
      batch.puts.push_back({pager_.key_of(batch.object, run.first + i), batch.buffer.page(at)});
    }
  }
}

// What the store has done.
void PageWriter::note_fates(Batch& batch, Outcome& outcome) {
  for (std::size_t i = 0; i < batch.puts.size(); ++i) {
    const std::size_t at = batch.at[i];
    switch (batch.puts[i].status) {
      case StoreStatus::ok:
        batch.fate[at] = Fate::stored;
        batch.slot[at] = batch.puts[i].slot;
        break;
      case StoreStatus::rejected:
        batch.fate[at] = Fate::rejected;
        ++outcome.rejected;
        break;
      default:
        outcome.status = batch.puts[i].status;
        break;
    }
  }
}

void PageWriter::commit(Batch& batch, Outcome& outcome) {
  WatchedRam& ram = pager_.ram();
  const std::uint32_t object = batch.object;
  FrameMap& frames = ram.frames(object);
  const std::lock_guard lock(
      ram.locks().of(object, HostOffset(batch.runs.front().first * kPageSize)));
  for (const Run& run : batch.runs) {
    for (std::uint32_t i = 0; i < run.count;) {
      const std::uint64_t page = run.first + i;
      const std::size_t at = run.at + i;
      const bool guarded = frames.state(page) == FrameState::guarded;
      if (guarded && ready_to_go(batch, page, at)) {
        // As many as go together, with one punch.
        std::uint32_t count = 1;
        while (i + count < run.count && frames.state(page + count) == FrameState::guarded &&
               ready_to_go(batch, page + count, at + count)) {
          ++count;
        }
        commit_run(batch, {page, count, at}, outcome);
        i += count;
        continue;
      }
      if (batch.fate[at] == Fate::stored) {
        drop(batch, at);
      }
      if (guarded) {
        let_go(object, page, 1, Marks::taken);
        frames.set(page, 1, FrameState::backed);
        if (batch.fate[at] == Fate::rejected) {
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
bool PageWriter::ready_to_go(Batch& batch, std::uint64_t page, std::size_t at) {
  if (batch.fate[at] == Fate::stored &&
      !pager_.enter(pager_.key_of(batch.object, page), batch.slot[at])) {
    drop(batch, at);
    batch.fate[at] = Fate::keep;
  }
  return goes(batch.fate[at]);
}

void PageWriter::commit_run(Batch& batch, const Run& run, Outcome& outcome) {
  WatchedRam& ram = pager_.ram();
  const std::uint32_t object = batch.object;
  FrameMap& frames = ram.frames(object);
  const int fd = ram.objects()[object].fd;
  const HostRange range{HostOffset(run.first * kPageSize), Bytes::pages(run.count)};
  (void)::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(range.start.bytes()),
                    static_cast<off_t>(range.size.count()));
  // The punch's result is not the proof: inside a huge page that does not split it returns 0,
  // zeroes the page and frees nothing.
  const bool any_left = backed_pages(fd, range) > 0;
  bool is_huge = false;
  for (std::uint32_t i = 0; i < run.count; ++i) {
    const std::uint64_t page = run.first + i;
    const std::size_t at = run.at + i;
    const Fate fate = batch.fate[at];
    const bool left =
        any_left && backed_pages(fd, {HostOffset(page * kPageSize), Bytes::pages(1)}) > 0;
    if (!left) {
      frames.set(page, 1, fate == Fate::zero ? FrameState::absent : FrameState::paged);
      ++(fate == Fate::zero ? outcome.zero : outcome.stored);
      continue;
    }
    // Put back from our copy, before anybody can look: readers of the page wait for our lock only
    // where it is a hole, which is why create() refuses memory with huge pages.
    is_huge = true;
    outcome.huge_page = {object, page};
    const bool back = ::pwrite(fd, batch.buffer.page(at), kPageSize,
                               static_cast<off_t>(page * kPageSize)) == kPageSize;
    if (fate == Fate::zero || back) {
      if (fate == Fate::stored) {
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
  let_go(object, run.first, run.count, is_huge ? Marks::taken : Marks::left);
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

void PageWriter::drop(const Batch& batch, std::size_t at) { pager_.store().free(batch.slot[at]); }

}  // namespace fileballoon
