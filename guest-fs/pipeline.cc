#include "guest-fs/pipeline.h"

#include <algorithm>
#include <cerrno>

namespace fileballoon::guest {

Pipeline::Pipeline(const BalloonFile& file)
    : file_(file),
      lookup_(FrameLookup::open().value()),
      read_ahead_(file),
      batch_pages_(file.batch_pages()),
      most_filling_(kMostFillingPages / batch_pages_),
      most_told_(kMostToldPages / batch_pages_),
      window_(file, batch_pages_) {
  for (std::size_t i = 0; i < most_filling_ + most_told_; ++i) {
    slots_.push_back(std::make_unique<Batch>(batch_pages_));
    slots_.back()->ranges.reserve(batch_pages_);
  }
  sorted_.reserve(batch_pages_);
}

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
  return count(Batch::State::asked) + count(Batch::State::filled) < most_filling_ &&
         count(Batch::State::idle) > 0;
}

void Pipeline::begin(Extent extent, bool for_floor) {
  Batch& batch = *oldest(Batch::State::idle);
  batch.state = Batch::State::asked;
  batch.extent = extent;
  batch.for_floor = for_floor;
  batch.order = ++order_;
  batch.rejected.reset();
}

void Pipeline::fill(Extent extent, bool for_floor) {
  begin(extent, for_floor);
  read_ahead_.start(extent, !for_floor);
}

void Pipeline::fill_small(Extent extent, std::optional<unsigned> cpu) {
  begin(extent, false);
  read_ahead_.start(extent, false, cpu);
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
  return count(Batch::State::told) < most_told_ ? oldest(Batch::State::filled) : nullptr;
}

int Pipeline::pin_and_look(Batch& batch) {
  const std::uint64_t pages = batch.extent.count;
  if (!window_.show(batch.extent)) {
    drop(batch);
    return ENOMEM;
  }
  int error = batch.pins.pin(window_.address(), pages);
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
      error = window_.populate();
    }
    look = lookup_.look(window_.address(), frames);
  }
  if (error == 0 && look != FrameLookup::Look::all) {
    error = EIO;
  }
  window_.hide();
  if (error != 0) {
    drop(batch);
    return error;
  }
  sorted_.assign(frames.begin(), frames.end());
  coalesce(sorted_, batch.ranges);
  return 0;
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
  // In runs: a folio goes whole or not at all.
  for (std::uint64_t page = 0; page < batch.extent.count && batch.rejected.any();) {
    std::uint64_t end = page;
    while (end < batch.extent.count && batch.rejected.test(end)) {
      ++end;
    }
    if (end > page) {
      dropped += file_.drop({batch.extent.first + page, end - page});
    }
    page = end + 1;
  }
  batch.state = Batch::State::idle;
  return dropped;
}

void Pipeline::drop(Batch& batch) {
  window_.hide();
  batch.pins.release();
  if (batch.state == Batch::State::filled && window_.show(batch.extent)) {
    // A page that is still being answered is locked and would survive the drop: wait for it.
    static_cast<void>(window_.populate());
    window_.hide();
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
