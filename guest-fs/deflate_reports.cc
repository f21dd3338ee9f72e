#include "guest-fs/deflate_reports.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "guest-fs/frame_lookup.h"

namespace fileballoon::guest {
namespace {

constexpr std::uint64_t kMostPages = FrameLookup::kMostPages;
constexpr std::size_t kWindowBytes = kMostPages * kPageSize;
/// A walk takes at most one part in this many of a CPU.
constexpr int kWalkShare = 20;

}  // namespace

DeflateReports::DeflateReports(const BalloonFile& file, FrameBook& book, DeflateMode mode,
                               std::chrono::milliseconds every)
    : file_(file),
      book_(book),
      tells_(mode == DeflateMode::batched),
      every_(every),
      frames_(kMostPages) {
  window_ =
      ::mmap(nullptr, kWindowBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (window_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "address space to look for lost pages");
  }
}

DeflateReports::~DeflateReports() { ::munmap(window_, kWindowBytes); }

std::optional<DeflateReports::Clock::time_point> DeflateReports::deadline() const {
  if (left_ > 0) {
    return next_piece_;
  }
  if (losses_ - walked_losses_ < (tells_ ? 1 : kSilentLosses) || book_.size() == 0) {
    return std::nullopt;
  }
  return next_walk_;
}

void DeflateReports::look(Clock::time_point now) {
  if (const auto due = deadline(); !due || now < *due) {
    return;
  }
  if (left_ == 0) {
    left_ = book_.size();
    walked_losses_ = losses_;
    next_walk_ = now + every_;
  }
  left_ = std::min(left_, book_.size());
  // From the young end, where reclaim takes: there a record that goes is replaced by one that was
  // looked at already.
  for (std::size_t i = 0; i < kPieceRecords && left_ > 0; ++i) {
    look_at(--left_);
  }
  const auto end = Clock::now();
  next_piece_ = end + (end - now) * kWalkShare;
}

void DeflateReports::look_at(std::size_t record) {
  const Extent extent = book_.at(record).extent;
  if (extent.count > kMostPages || file_.resident(extent) >= book_.at(record).resident) {
    return;
  }
  std::array<unsigned char, kMostPages> cached;
  void* const at = ::mmap(window_, extent.size().count(), PROT_READ, MAP_SHARED | MAP_FIXED,
                          file_.fd(), static_cast<off_t>(extent.first.byte_offset()));
  if (at == MAP_FAILED || ::mincore(at, extent.size().count(), cached.data()) != 0) {
    return;
  }
  ::mmap(window_, kWindowBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
  const auto frames = std::span(frames_).first(extent.count);
  book_.read(record, frames);
  for (std::uint64_t page = 0; page < extent.count; ++page) {
    if ((cached.at(page) & 1U) == 0 && frames[page] != FrameBook::kGone) {
      if (tells_) {
        gone_.push_back(frames[page]);
      }
      frames[page] = FrameBook::kGone;
    }
  }
  book_.write(record, frames);
}

void DeflateReports::forget_known(std::span<const GuestFrame> still_balloon) {
  std::sort(gone_.begin(), gone_.end());
  std::vector<bool> known(gone_.size());
  const auto mark = [&](GuestFrame first, std::uint64_t count) {
    const auto begin = std::lower_bound(gone_.begin(), gone_.end(), first);
    for (auto at = begin; at != gone_.end() && *at < first + count; ++at) {
      known[static_cast<std::size_t>(at - gone_.begin())] = true;
    }
  };
  for (std::size_t record = 0; record < book_.size(); ++record) {
    for (const FrameBook::Run& run : book_.at(record).runs) {
      if (run.first != 0) {
        mark(GuestFrame(run.first), run.count);
      }
    }
  }
  for (const GuestFrame frame : still_balloon) {
    mark(frame, 1);
  }
  std::size_t at = 0;
  std::erase_if(gone_, [&](GuestFrame) { return known[at++]; });
}

std::vector<FrameRange> DeflateReports::take(std::span<const GuestFrame> still_balloon,
                                             std::size_t most) {
  std::vector<FrameRange> ranges;
  forget_known(still_balloon);
  coalesce(gone_, ranges);
  gone_.clear();
  while (ranges.size() > most) {  // the rest goes with the next message
    const FrameRange& last = ranges.back();
    for (std::uint64_t i = 0; i < last.count; ++i) {
      gone_.push_back(last.first + i);
    }
    ranges.pop_back();
  }
  return ranges;
}

}  // namespace fileballoon::guest
