#include "uffd/pager/file_store.h"

#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "uffd/crowded_cpus.h"
#include "uffd/pager/checksum.h"

namespace fileballoon {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kCrowded{200};

std::uint64_t offset_of(std::uint32_t slot) {
  return StoreFile::kContentStart.count() + std::uint64_t{slot} * kPageSize;
}

// Slots are numbers of 31 bits: the topmost stays free for the tier.
std::uint32_t slots_for(Bytes limit) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(limit.whole_pages(), 0x7FFFFFFF));
}

StoreStatus status_of(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG ? StoreStatus::full
                                                              : StoreStatus::io_error;
}

}  // namespace

FileStore::FileStore(StoreFile file, std::shared_ptr<WriteBudget> budget)
    : file_(std::move(file)),
      budget_(std::move(budget)),
      write_ring_(kQueue),
      read_ring_(kQueue),
      slots_(slots_for(file_.limit())),
      checksums_((slots_.slots() + kBlockSlots - 1) / kBlockSlots) {}

std::uint64_t& FileStore::checksum(std::uint32_t slot) {
  return checksums_[slot / kBlockSlots][slot % kBlockSlots];
}

StoreStatus FileStore::put(std::span<PagePut> pages) {
  if (start(pages)) {
    finish();
  }
  for (const PagePut& page : pages) {
    if (page.status != StoreStatus::ok) {
      return page.status;
    }
  }
  return StoreStatus::ok;
}

bool FileStore::start(std::span<PagePut> pages) {
  const std::lock_guard guard(put_mutex_);
  wait_for_all();  // of another's batch
  writing_ = take_slots(pages);
  if (writing_.empty()) {
    return false;
  }
  split(runs_);
  submit_all();
  return true;
}

void FileStore::finish() {
  const std::lock_guard guard(put_mutex_);
  wait_for_all();
}

/// The pages that have got slots, which are in runs_; the others have their status.
std::span<PagePut> FileStore::take_slots(std::span<PagePut> pages) {
  runs_.clear();
  std::uint32_t taken = 0;
  {
    const std::lock_guard slots_guard(slots_mutex_);
    taken = slots_.take(static_cast<std::uint32_t>(pages.size()), runs_);
  }
  for (PagePut& page : pages.subspan(taken)) {
    page.status = StoreStatus::full;
  }
  // Cut to what the budget and the file system have room for.
  StoreStatus refused = StoreStatus::ok;
  if (budget_ && taken > 0 && !budget_->charge(Bytes::pages(taken))) {
    refused = StoreStatus::over_budget;
  }
  std::uint32_t end = 0;
  for (const SlotRun& run : runs_) {
    end = std::max(end, run.first + run.count);
  }
  if (refused == StoreStatus::ok && taken > 0) {
    if (const int error = file_.reserve(Bytes::pages(end)); error != 0) {
      refused = status_of(error);
      io_errors_.fetch_add(refused == StoreStatus::io_error ? 1 : 0, std::memory_order_relaxed);
    }
  }
  if (refused != StoreStatus::ok) {
    const std::lock_guard slots_guard(slots_mutex_);
    for (const SlotRun& run : runs_) {
      for (std::uint32_t i = 0; i < run.count; ++i) {
        slots_.give_back(run.first + i);
      }
    }
    for (PagePut& page : pages.first(taken)) {
      page.status = refused;
    }
    return {};
  }
  for (const SlotRun& run : runs_) {
    for (std::uint32_t block = run.first / kBlockSlots;
         block <= (run.first + run.count - 1) / kBlockSlots; ++block) {
      if (!checksums_[block]) {
        checksums_[block] = std::make_unique<std::uint64_t[]>(kBlockSlots);
      }
    }
  }
  return pages.first(taken);
}

void FileStore::split(std::span<const SlotRun> runs) {
  writes_.clear();
  std::size_t page = 0;
  for (const SlotRun& run : runs) {
    for (std::uint32_t done = 0; done < run.count;) {
      const std::uint32_t count = std::min(kPagesPerWrite, run.count - done);
      writes_.push_back({{run.first + done, count}, page});
      page += count;
      done += count;
    }
  }
}

// Waits only where there are more writes than the ring has entries.
void FileStore::submit_all() {
  iovecs_.resize(writing_.size());
  submitted_ = completed_ = 0;
  while (submitted_ < writes_.size()) {
    if (submitted_ - completed_ == write_ring_.entries()) {
      wait_for_some();
    }
    submit(submitted_++);
  }
}

void FileStore::submit(std::size_t number) {
  const Write& write = writes_[number];
  const std::span<PagePut> pages = writing_.subspan(write.page, write.run.count);
  bool contiguous = true;
  for (std::uint32_t i = 0; i < write.run.count; ++i) {
    const PagePut& page = pages[i];
    // Checksummed before it is written: whatever goes wrong from here on is noticed.
    checksum(write.run.first + i) = checksum64({page.data, kPageSize}, page.key);
    iovecs_[write.page + i] = {const_cast<std::byte*>(page.data), kPageSize};
    contiguous = contiguous && page.data == pages[0].data + i * kPageSize;
  }
  io_uring_sqe* sqe = io_uring_get_sqe(write_ring_.get());
  if (contiguous) {  // as a PageWriter's pages are, but for zero pages between them
    io_uring_prep_write(sqe, file_.fd(), pages[0].data,
                        static_cast<unsigned>(write.run.count * kPageSize),
                        offset_of(write.run.first));
  } else {
    io_uring_prep_writev(sqe, file_.fd(), &iovecs_[write.page], write.run.count,
                         offset_of(write.run.first));
  }
  sqe->user_data = number;
  // The disk works while the next checksums are computed.
  (void)io_uring_submit(write_ring_.get());
}

void FileStore::wait_for_some() {
  io_uring* ring = write_ring_.get();
  (void)io_uring_submit_and_wait(ring, 1);  // EINTR and EAGAIN: the caller comes back
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(ring, &cqe) == 0) {
    completed(writes_[cqe->user_data], cqe->res);
    io_uring_cqe_seen(ring, cqe);
    ++completed_;
  }
}

void FileStore::wait_for_all() {
  while (completed_ < submitted_) {
    wait_for_some();
  }
}

void FileStore::completed(const Write& write, int result) {
  const auto whole =
      static_cast<std::uint32_t>(result > 0 ? static_cast<std::uint64_t>(result) / kPageSize : 0);
  // A short write is what a full device or a limit in the middle of it looks like.
  const StoreStatus failed = result >= 0 ? StoreStatus::full : status_of(-result);
  if (result < 0 && failed == StoreStatus::io_error) {
    io_errors_.fetch_add(1, std::memory_order_relaxed);
  }
  const std::lock_guard guard(slots_mutex_);
  for (std::uint32_t i = 0; i < write.run.count; ++i) {
    PagePut& page = writing_[write.page + i];
    if (i < whole) {
      page.slot = Slot{write.run.first + i};
      page.status = StoreStatus::ok;
    } else {
      page.status = failed;
      // A slot that could not be written is never used again: the medium is bad there.
      if (failed != StoreStatus::io_error) {
        slots_.give_back(write.run.first + i);
      }
    }
  }
}

StoreStatus FileStore::get(std::span<PageGet> pages) {
  StoreStatus first = StoreStatus::ok;
  bool contiguous = true;
  bool slept = true;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    pages[i].status =
        pages[i].slot.value < slots_.slots() && checksums_[pages[i].slot.value / kBlockSlots]
            ? StoreStatus::ok
            : StoreStatus::corrupt;
    contiguous = contiguous && pages[i].status == StoreStatus::ok &&
                 (i == 0 || pages[i].slot.value == pages[i - 1].slot.value + 1);
  }
  constexpr std::size_t kMaxRun = 64;
  if (contiguous && !pages.empty() && pages.size() <= kMaxRun) {
    std::array<iovec, kMaxRun> iovecs;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      iovecs[i] = {pages[i].out, kPageSize};
    }
    const std::int64_t got =
        read_run({iovecs.data(), pages.size()}, offset_of(pages.front().slot.value), slept);
    const std::size_t whole = got > 0 ? static_cast<std::size_t>(got) / kPageSize : 0;
    for (PageGet& page : pages.subspan(whole)) {
      page.status = StoreStatus::io_error;
    }
  } else {
    read_all(pages);
  }
  for (PageGet& page : pages) {
    page.slept = slept;
    check(page);
    if (first == StoreStatus::ok) {
      first = page.status;
    }
  }
  return first;
}

// One request. Where the ring is in use, by another reader, asleep.
std::int64_t FileStore::read_run(std::span<iovec> into, std::uint64_t offset, bool& slept) {
  std::unique_lock lock(read_mutex_, std::defer_lock);
  const auto start = Clock::now();
  const bool awake = wait_.awake();
  slept = !awake || !lock.try_lock();
  const std::int64_t result = slept
                                  ? ::preadv(file_.fd(), into.data(), static_cast<int>(into.size()),
                                             static_cast<off_t>(offset))
                                  : read_awake(into, offset);
  // To be compared: of one length, and in the way that is tried.
  if (into.size() == 1 && slept != awake && (lock.owns_lock() || lock.try_lock()) &&
      wait_.awake() == awake) {
    wait_.took(Clock::now() - start);
  }
  return result;
}

// With the ring's lock held.
std::int64_t FileStore::read_awake(std::span<iovec> into, std::uint64_t offset) {
  io_uring* ring = read_ring_.get();
  io_uring_sqe* sqe = io_uring_get_sqe(ring);
  io_uring_prep_readv(sqe, file_.fd(), into.data(), static_cast<unsigned>(into.size()), offset);
  thread_local CrowdedCpus crowded(kCrowded);
  const auto start = Clock::now();
  auto now = start;
  (void)io_uring_submit(ring);
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(ring, &cqe) != 0) {
    if (now - start < kSpin && !crowded.at(now)) {
      ::sched_yield();
      const auto before = std::exchange(now, Clock::now());
      crowded.gave_way(now - before, now);
    } else {
      (void)io_uring_submit_and_wait(ring, 1);  // EINTR and EAGAIN: once more round
    }
  }
  const std::int64_t result = cqe->res;
  io_uring_cqe_seen(ring, cqe);
  return result;
}

void FileStore::read_all(std::span<PageGet> pages) {
  const std::lock_guard guard(read_mutex_);
  io_uring* ring = read_ring_.get();
  std::size_t next = 0;
  std::size_t in_flight = 0;
  while (next < pages.size() || in_flight > 0) {
    while (next < pages.size() && in_flight < read_ring_.entries()) {
      if (pages[next].status == StoreStatus::ok) {
        io_uring_sqe* sqe = io_uring_get_sqe(ring);
        io_uring_prep_read(sqe, file_.fd(), pages[next].out, kPageSize,
                           offset_of(pages[next].slot.value));
        sqe->user_data = next;
        ++in_flight;
      }
      ++next;
    }
    if (in_flight == 0) {
      break;
    }
    (void)io_uring_submit_and_wait(ring, 1);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring, &cqe) == 0) {
      if (cqe->res != static_cast<int>(kPageSize)) {
        pages[cqe->user_data].status = StoreStatus::io_error;
      }
      io_uring_cqe_seen(ring, cqe);
      --in_flight;
    }
  }
}

void FileStore::check(PageGet& page) {
  if (page.status == StoreStatus::ok &&
      checksum64({page.out, kPageSize}, page.key) != checksum(page.slot.value)) {
    page.status = StoreStatus::corrupt;
  }
  if (page.status == StoreStatus::corrupt) {
    corrupt_.fetch_add(1, std::memory_order_relaxed);
  } else if (page.status == StoreStatus::io_error) {
    io_errors_.fetch_add(1, std::memory_order_relaxed);
  }
}

void FileStore::free(Slot slot) {
  const std::lock_guard guard(slots_mutex_);
  slots_.give_back(slot.value);
}

void FileStore::maintain(SlotOwner&) {}

StoreStats FileStore::stats() const {
  StoreStats stats;
  const std::lock_guard guard(slots_mutex_);
  stats.pages = stats.file_pages = slots_.taken();
  stats.disk = file_.reserved();
  stats.limit = file_.limit();
  std::uint64_t blocks = 0;
  for (const auto& block : checksums_) {
    blocks += block ? 1 : 0;
  }
  stats.metadata = Bytes(slots_.memory() + checksums_.size() * sizeof(checksums_[0]) +
                         blocks * kBlockSlots * sizeof(std::uint64_t));
  stats.io_errors = io_errors_.load(std::memory_order_relaxed);
  stats.corrupt = corrupt_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace fileballoon
