#include "guest-fs/pipeline.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace fileballoon::guest {
namespace {

constexpr std::size_t kWindowBytes = Pipeline::kBatchPages * kPageSize;

}  // namespace

Pipeline::Pipeline(const BalloonFile& file)
    : file_(file), lookup_(FrameLookup::open().value()), read_ahead_(file) {
  window_ =
      ::mmap(nullptr, kWindowBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (window_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "address space of a batch");
  }
  for (std::size_t i = 0; i < kSlots; ++i) {
    slots_.push_back(std::make_unique<Batch>());
    slots_.back()->ranges.reserve(kBatchPages);
  }
  sorted_.reserve(kBatchPages);
}

Pipeline::~Pipeline() { ::munmap(window_, kWindowBytes); }

std::size_t Pipeline::count(Batch::State state) const {
  return static_cast<std::size_t>(std::count_if(
      slots_.begin(), slots_.end(), [state](const auto& slot) { return slot->state == state; }));
}

std::uint64_t Pipeline::in_flight_pages() const {
  std::uint64_t sum = 0;
  for (const auto& slot : slots_) {
    sum += slot->state != Batch::State::idle ? slot->extent.count : 0;
  }
  return sum;
}

std::uint64_t Pipeline::floor_pages() const {
  std::uint64_t sum = 0;
  for (const auto& slot : slots_) {
    sum += slot->state != Batch::State::idle && slot->for_floor ? slot->extent.count : 0;
  }
  return sum;
}

Batch* Pipeline::oldest(Batch::State state) {
  Batch* found = nullptr;
  for (const auto& slot : slots_) {
    if (slot->state == state && (found == nullptr || slot->order < found->order)) {
      found = slot.get();
    }
  }
  return found;
}

bool Pipeline::can_fill() const {
  return count(Batch::State::asked) + count(Batch::State::filled) < kMostFilling &&
         count(Batch::State::idle) > 0;
}

void Pipeline::fill(Extent extent, bool for_floor) {
  Batch& batch = *oldest(Batch::State::idle);
  batch.state = Batch::State::asked;
  batch.extent = extent;
  batch.for_floor = for_floor;
  batch.order = ++order_;
  batch.rejected.reset();
  read_ahead_.start(extent);
}

void Pipeline::note_filled(std::size_t count) {
  for (; count > 0; --count) {
    if (Batch* const batch = oldest(Batch::State::asked)) {
      batch->state = Batch::State::filled;
    }
  }
}

void Pipeline::collect() { note_filled(read_ahead_.finished()); }

Batch* Pipeline::next_to_tell() {
  return count(Batch::State::told) < kMostTold ? oldest(Batch::State::filled) : nullptr;
}

int Pipeline::pin_and_look(Batch& batch) {
  const std::uint64_t pages = batch.extent.count;
  if (map_window(batch.extent) == nullptr) {
    drop(batch);
    return ENOMEM;
  }
  int error = batch.pins.pin(window_, pages);
  const auto frames = std::span(batch.frames).first(pages);
  FrameLookup::Look look = FrameLookup::Look::not_present;
  // A pinned page can still be unmapped by reclaim between the pin and the look; mapping it again
  // finds the same page, since a pinned page leaves the cache for nobody.
  for (int attempt = 0; error == 0 && look == FrameLookup::Look::not_present; ++attempt) {
    if (attempt > 10) {
      error = EAGAIN;
      break;
    }
    if (attempt > 0) {
      error = ::madvise(window_, pages * kPageSize, MADV_POPULATE_READ) == 0 ? 0 : errno;
    }
    look = lookup_.look(window_, frames);
  }
  if (error == 0 && look != FrameLookup::Look::all) {
    error = EIO;
  }
  unmap_window();
  if (error != 0) {
    drop(batch);
    return error;
  }
  sorted_.assign(frames.begin(), frames.end());
  coalesce(sorted_, batch.ranges);
  return 0;
}

std::byte* Pipeline::map_window(Extent extent) {
  if (::mmap(window_, extent.size().count(), PROT_READ, MAP_SHARED | MAP_FIXED, file_.fd(),
             static_cast<off_t>(extent.first.byte_offset())) == MAP_FAILED) {
    return nullptr;
  }
  window_pages_ = extent.count;
  return static_cast<std::byte*>(window_);
}

void Pipeline::unmap_window() {
  // The mapping itself stays until the next one replaces it: one call less, no tables freed.
  if (window_pages_ > 0) {
    ::madvise(window_, window_pages_ * kPageSize, MADV_DONTNEED);
    window_pages_ = 0;
  }
}

void Pipeline::mark_told(Batch& batch, std::uint64_t name) {
  batch.state = Batch::State::told;
  batch.name = name;
}

Batch* Pipeline::find_told(std::uint64_t name) {
  for (const auto& slot : slots_) {
    if (slot->state == Batch::State::told && slot->name == name) {
      return slot.get();
    }
  }
  return nullptr;
}

std::uint64_t Pipeline::release(Batch& batch) {
  batch.pins.release();
  std::uint64_t dropped = 0;
  if (batch.rejected.any()) {
    for (std::uint64_t page = 0; page < batch.extent.count; ++page) {
      if (batch.rejected.test(page)) {
        dropped += file_.drop({batch.extent.first + page, 1});
      }
    }
  }
  batch.state = Batch::State::idle;
  return dropped;
}

void Pipeline::drop(Batch& batch) {
  unmap_window();
  batch.pins.release();
  if (batch.state == Batch::State::filled && map_window(batch.extent) != nullptr) {
    // A page that is still being answered is locked and would survive the drop: wait for it.
    ::madvise(window_, batch.extent.size().count(), MADV_POPULATE_READ);
    unmap_window();
  }
  file_.drop(batch.extent);
  batch.state = Batch::State::idle;
}

std::uint64_t Pipeline::cancel() {
  while (count(Batch::State::asked) > 0) {
    const std::size_t finished = read_ahead_.wait();
    if (finished == 0) {
      return 0;  // it died: the agent ends, and all pages go with the mount
    }
    note_filled(finished);
  }
  std::uint64_t pages = 0;
  for (const auto& slot : slots_) {
    if (slot->state != Batch::State::idle) {
      pages += slot->extent.count;
      drop(*slot);
    }
  }
  return pages;
}

}  // namespace fileballoon::guest
