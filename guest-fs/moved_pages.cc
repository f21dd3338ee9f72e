#include "guest-fs/moved_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace fileballoon::guest {
namespace {

constexpr std::uint64_t kMostPages =
    std::min<std::uint64_t>(FrameLookup::kMostPages, PinPipe::kMostPages);
constexpr std::size_t kWindowBytes = kMostPages * kPageSize;

}  // namespace

MovedPages::MovedPages(const BalloonFile& file, LockedFloor& floor, FrameBook& book)
    : file_(file),
      floor_(floor),
      book_(book),
      lookup_(FrameLookup::open().value()),
      pins_(kMostPages) {
  window_ =
      ::mmap(nullptr, kWindowBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (window_ == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(),
                            "address space to look for moved pages");
  }
  recorded_.resize(kMostPages);
  seen_.resize(kMostPages);
  moved_.reserve(kMostPages);
  sorted_.reserve(kMostPages);
  ranges_.reserve(kMostPages);
}

MovedPages::~MovedPages() { ::munmap(window_, kWindowBytes); }

void MovedPages::note_migrations(std::uint64_t migrations) {
  if (std::exchange(migrations_, migrations) != migrations) {
    pass_wanted_ = true;
  }
}

void MovedPages::begin_pass() {
  pass_wanted_ = false;
  floor_next_ = 0;
  book_left_ = book_.size();
}

std::optional<MovedPages::Clock::time_point> MovedPages::deadline() const {
  const bool idle = !pass_wanted_ && floor_next_ >= floor_.pages() && book_left_ == 0;
  return idle || told_ ? std::nullopt : std::optional(next_look_);
}

bool MovedPages::look(Clock::time_point now) {
  if (const auto due = deadline(); !due || now < *due) {
    return false;
  }
  if (floor_next_ >= floor_.pages() && book_left_ == 0) {
    begin_pass();
  }
  moved_.clear();
  for (std::uint64_t looked = 0; looked < kPiecePages && moved_.empty();) {
    if (floor_next_ < floor_.pages()) {
      looked += look_at_floor();
    } else if (book_left_ > 0) {
      looked += look_at_record();
    } else {
      break;
    }
  }
  const auto end = Clock::now();
  next_look_ = end + std::max<Clock::duration>(kLeastPause, (end - now) * kPassShare);
  if (moved_.empty()) {
    return false;
  }
  sorted_.clear();
  for (const Moved& moved : moved_) {
    sorted_.push_back(moved.frame);
  }
  coalesce(sorted_, ranges_);
  return true;
}

std::uint64_t MovedPages::look_at_floor() {
  in_floor_ = true;
  piece_ = floor_next_;
  floor_version_ = floor_.version();
  const std::uint64_t pages = std::min(kMostPages, floor_.pages() - piece_);
  for (std::uint64_t i = 0; i < pages; ++i) {
    recorded_[i] = floor_.frame(piece_ + i);
  }
  find_moved(static_cast<const std::byte*>(floor_.address(piece_)), pages);
  floor_next_ += pages;
  return pages;
}

std::uint64_t MovedPages::look_at_record() {
  book_left_ = std::min(book_left_, book_.size());
  if (book_left_ == 0) {
    return 0;
  }
  in_floor_ = false;
  const std::size_t record = --book_left_;
  const Extent extent = book_.at(record).extent;
  if (extent.count > kMostPages) {
    return extent.count;
  }
  piece_ = extent.first.index();
  const auto recorded = std::span(recorded_).first(extent.count);
  book_.read(record, recorded);
  const std::byte* const window = map_window(extent);
  std::array<unsigned char, kMostPages> cached;
  if (window == nullptr ||
      ::mincore(const_cast<std::byte*>(window), extent.size().count(), cached.data()) != 0) {
    return extent.count;
  }
  // Mapping a page that reclaim took would read it anew: only what is cached is mapped.
  for (std::uint64_t first = 0; first < extent.count;) {
    std::uint64_t end = first;
    while (end < extent.count && (cached.at(end) & 1U) != 0) {
      ++end;
    }
    if (end > first) {
      ::madvise(const_cast<std::byte*>(window) + first * kPageSize, (end - first) * kPageSize,
                MADV_POPULATE_READ);
    }
    first = end + 1;
  }
  find_moved(window, extent.count);
  close_window();
  return extent.count;
}

void MovedPages::find_moved(const std::byte* at, std::uint64_t pages) {
  const auto seen = std::span(seen_).first(pages);
  const auto moved = [&](std::uint64_t i) {
    // A page "not present" is on its way (a migration entry) or gone: a later pass sees it.
    return recorded_[i] != FrameBook::kGone && seen[i] != FrameBook::kGone &&
           seen[i] != recorded_[i];
  };
  if (lookup_.look(at, seen) == FrameLookup::Look::failed) {
    return;
  }
  bool pinned = false;
  for (std::uint64_t first = 0; first < pages;) {
    std::uint64_t end = first;
    while (end < pages && moved(end)) {
      ++end;
    }
    if (end > first) {
      if (pins_.pin(at + first * kPageSize, end - first) != 0) {
        moved_.clear();  // it let go of everything; a later pass finds them
        return;
      }
      pinned = true;
      for (std::uint64_t i = first; i < end; ++i) {
        moved_.push_back({i, GuestFrame()});
      }
    }
    first = end + 1;
  }
  if (!pinned) {
    return;
  }
  // They may have moved again before they were pinned: only what is seen now is told.
  if (lookup_.look(at, seen) == FrameLookup::Look::failed) {
    moved_.clear();
  }
  std::erase_if(moved_, [&](Moved& one) {
    one.frame = seen[one.page];
    return !moved(one.page);
  });
  if (moved_.empty()) {
    pins_.release();
  }
}

MovedPages::Told MovedPages::acknowledge(const wire::Ack& ack) {
  Told told;
  for (const Moved& one : moved_) {
    told.moved += recorded_[one.page] != LockedFloor::kUnknown ? 1 : 0;
  }
  for (const wire::RangeOutcome& outcome : ack.outcomes) {
    told.became.discarded += outcome.discarded;
    told.became.not_zero += outcome.not_zero;
    told.became.refused += outcome.refused;
    told.became.failed += outcome.failed;
  }
  // Written down whatever the outcome: a frame that the host did not free is in its counts, and
  // telling it again in each pass would not change that.
  if (in_floor_ && floor_version_ == floor_.version()) {
    for (const Moved& one : moved_) {
      floor_.set_frame(piece_ + one.page, one.frame);
    }
  } else if (!in_floor_) {
    for (std::size_t record = 0; record < book_.size(); ++record) {
      const Extent extent = book_.at(record).extent;
      if (extent.first.index() == piece_) {
        book_.read(record, recorded_);
        for (const Moved& one : moved_) {
          recorded_[one.page] = one.frame;
        }
        book_.write(record, recorded_);
        break;
      }
    }
  }
  pins_.release();
  told_.reset();
  moved_.clear();
  ranges_.clear();
  next_look_ = {};  // where one has moved there are more
  return told;
}

void MovedPages::cancel() {
  if (told_) {
    pass_wanted_ = true;
  }
  pins_.release();
  told_.reset();
  moved_.clear();
  ranges_.clear();
}

std::byte* MovedPages::map_window(Extent extent) {
  void* const at = ::mmap(window_, extent.size().count(), PROT_READ, MAP_SHARED | MAP_FIXED,
                          file_.fd(), static_cast<off_t>(extent.first.byte_offset()));
  return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
}

void MovedPages::close_window() {
  ::mmap(window_, kWindowBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
}

}  // namespace fileballoon::guest
