#include "guest-fs/pipeline.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace fileballoon::guest {
namespace {

constexpr std::size_t kWindowBytes = Pipeline::kBatchPages * kPageSize;

}  // namespace

Pipeline::Pipeline(const BalloonFile& file, FrameLookup& lookup) : file_(file), lookup_(lookup) {
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

std::uint64_t Pipeline::pages(Batch::State state) const {
  std::uint64_t sum = 0;
  for (const auto& slot : slots_) {
    sum += slot->state == state ? slot->extent.count : 0;
  }
  return sum;
}

std::uint64_t Pipeline::in_flight_pages() const {
  return pages(Batch::State::filling) + pages(Batch::State::told);
}

std::uint64_t Pipeline::held_pages() const {
  return in_flight_pages() + pages(Batch::State::acked);
}

std::uint64_t Pipeline::floor_pages() const {
  std::uint64_t sum = 0;
  for (const auto& slot : slots_) {
    sum += slot->state != Batch::State::idle && slot->for_floor ? slot->extent.count : 0;
  }
  return sum;
}

bool Pipeline::is_idle() const { return count(Batch::State::idle) == slots_.size(); }

bool Pipeline::can_fill() const {
  return count(Batch::State::filling) < kMostFilling && count(Batch::State::idle) > 0;
}

void Pipeline::fill(Extent extent, bool for_floor) {
  const auto slot = std::find_if(slots_.begin(), slots_.end(), [](const auto& candidate) {
    return candidate->state == Batch::State::idle;
  });
  Batch& batch = **slot;
  batch.state = Batch::State::filling;
  batch.extent = extent;
  batch.for_floor = for_floor;
  batch.rejected.reset();
  file_.prefetch(extent);
}

Batch* Pipeline::next_to_tell() {
  if (count(Batch::State::told) >= kMostTold) {
    return nullptr;
  }
  Batch* oldest = nullptr;
  for (const auto& slot : slots_) {
    // Offsets only ever grow within the two parts of the file, and the floor goes first.
    if (slot->state == Batch::State::filling &&
        (oldest == nullptr || slot->extent.first < oldest->extent.first)) {
      oldest = slot.get();
    }
  }
  return oldest;
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
    if (attempt > 0) {
      if (attempt > 10) {
        error = EAGAIN;
        break;
      }
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
  window_mapped_ = true;
  // No read-ahead of the kernel's own beyond the batch, should a page be missing.
  ::madvise(window_, extent.size().count(), MADV_RANDOM);
  return static_cast<std::byte*>(window_);
}

void Pipeline::unmap_window() {
  if (window_mapped_) {
    ::mmap(window_, kWindowBytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    window_mapped_ = false;
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

void Pipeline::mark_acked(Batch& batch) { batch.state = Batch::State::acked; }

std::uint64_t Pipeline::release_acked(bool all, std::vector<Extent>& placed) {
  if (pages(Batch::State::acked) < (all ? 1 : kPlaceGroup)) {
    return 0;
  }
  std::array<Batch*, kSlots> group{};
  std::size_t size = 0;
  for (const auto& slot : slots_) {
    if (slot->state == Batch::State::acked) {
      group.at(size++) = slot.get();
    }
  }
  std::sort(group.begin(), group.begin() + static_cast<std::ptrdiff_t>(size),
            [](const Batch* a, const Batch* b) { return a->extent.first < b->extent.first; });
  Extent run;
  const auto place_run = [&] {
    if (run.count > 0) {
      file_.place_for_reclaim(run);
      placed.push_back(run);
    }
  };
  for (std::size_t i = 0; i < size; ++i) {
    const Extent& extent = group.at(i)->extent;
    if (run.count > 0 && run.end() == extent.first) {
      run.count += extent.count;
    } else {
      place_run();
      run = extent;
    }
  }
  place_run();

  std::uint64_t dropped = 0;
  for (std::size_t i = 0; i < size; ++i) {
    Batch& batch = *group.at(i);
    batch.pins.release();
    if (batch.rejected.any()) {
      for (std::uint64_t page = 0; page < batch.extent.count; ++page) {
        if (batch.rejected.test(page)) {
          dropped += file_.drop({batch.extent.first + page, 1});
        }
      }
    }
    batch.state = Batch::State::idle;
  }
  return dropped;
}

void Pipeline::release(Batch& batch) {
  batch.pins.release();
  batch.state = Batch::State::idle;
}

void Pipeline::drop(Batch& batch) {
  unmap_window();
  batch.pins.release();
  if (batch.state == Batch::State::filling) {
    // A page that is still being filled is locked and would survive the drop: wait for it.
    std::byte* const at = map_window(batch.extent);
    if (at != nullptr) {
      ::madvise(at, batch.extent.size().count(), MADV_POPULATE_READ);
      unmap_window();
    }
  }
  file_.drop(batch.extent);
  batch.state = Batch::State::idle;
}

std::uint64_t Pipeline::cancel() {
  std::uint64_t pages = 0;
  for (const auto& slot : slots_) {
    if (slot->state == Batch::State::filling || slot->state == Batch::State::told) {
      pages += slot->extent.count;
      drop(*slot);
    }
  }
  return pages;
}

}  // namespace fileballoon::guest
