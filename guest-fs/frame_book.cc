#include "guest-fs/frame_book.h"

#include <utility>

namespace fileballoon::guest {

void FrameBook::encode(std::span<const GuestFrame> frames, Record& record) {
  record.runs.clear();
  record.resident = 0;
  for (const GuestFrame frame : frames) {
    const auto number = static_cast<std::uint32_t>(frame.number());
    record.resident += frame != kGone ? 1 : 0;
    if (!record.runs.empty()) {
      Run& last = record.runs.back();
      const bool both_gone = number == 0 && last.first == 0;
      if (both_gone || (last.first != 0 && number == last.first + last.count)) {
        ++last.count;
        continue;
      }
    }
    record.runs.push_back({number, 1});
  }
  record.runs.shrink_to_fit();
}

void FrameBook::add(Extent extent, std::span<const GuestFrame> frames) {
  Record record;
  record.extent = extent;
  encode(frames.first(extent.count), record);
  if (record.resident > 0) {
    pages_ += record.resident;
    records_.push_back(std::move(record));
  }
}

void FrameBook::read(std::size_t record, std::span<GuestFrame> out) const {
  std::size_t page = 0;
  for (const Run& run : records_.at(record).runs) {
    for (std::uint32_t i = 0; i < run.count; ++i) {
      out[page++] = run.first == 0 ? kGone : GuestFrame(std::uint64_t{run.first} + i);
    }
  }
}

void FrameBook::write(std::size_t record, std::span<const GuestFrame> frames) {
  Record& changed = records_.at(record);
  pages_ -= changed.resident;
  encode(frames.first(changed.extent.count), changed);
  pages_ += changed.resident;
  if (changed.resident == 0) {
    std::swap(changed, records_.back());
    records_.pop_back();
  }
}

}  // namespace fileballoon::guest
