// What becomes of pages after they are balloon: those that the kernel moves are told anew, those
// that leave are named or forgotten, and in the mode tell-host-first nothing leaves before the host
// has backed it. Part of Inflater, in a file of its own.
#include <algorithm>
#include <cstring>

#include "guest-fs/inflater.h"
#include "guest-fs/log.h"

namespace fileballoon::guest {

void Inflater::follow_pages(Clock::time_point now) {
  if (now >= lock_again_) {
    lockable_pages_ = floor_.capacity();
  }
  deflate_reports_.note_losses(stats_.evicted_pages + stats_.dropped_pages +
                               stats_.exchanged_pages);
  deflate_reports_.look(now);
  if (!link_.is_established()) {
    return;
  }
  if (moved_.look(now)) {
    moved_.mark_told(link_.send_report(moved_.ranges()));
  }
  if (deflate_reports_.has_some() && link_.backlog() == 0) {
    wire::Deflated message;
    message.resident = Bytes::pages(resident_pages());
    message.ranges = deflate_reports_.take(other_frames(), wire::kMaxRanges);
    if (!message.ranges.empty()) {
      stats_.named_pages += total_frames(message.ranges);
      link_.send(message);
    }
  }
}

std::vector<GuestFrame> Inflater::other_frames() {
  std::vector<GuestFrame> frames;
  for (std::uint64_t page = 0; page < floor_.pages(); ++page) {
    frames.push_back(floor_.frame(page));
  }
  for (const std::uint64_t name : told_) {
    if (const Batch* const batch = pipeline_.find_told(name)) {
      const auto of_batch = std::span(batch->frames).first(batch->extent.count);
      frames.insert(frames.end(), of_batch.begin(), of_batch.end());
    }
  }
  return frames;
}

// -------------------------------------------------------------------------------- tell-host-first

void Inflater::ask_host_to_back(std::uint64_t pages, Clock::time_point now) {
  // What is on its way to the host now would join the floor above what is asked for.
  if (!link_.is_established() || !host_backs_ || pipeline_.in_flight_pages() > 0) {
    return;
  }
  while (told_deflation_.ask(pages, now)) {
    told_deflation_.mark_asked(link_.send(
        wire::Populate{{told_deflation_.ranges().begin(), told_deflation_.ranges().end()}}));
  }
}

int Inflater::lock(Batch& batch, std::span<const GuestFrame> frames) {
  const std::uint64_t index = floor_.pages();
  if (const int error = floor_.add(batch.extent, frames); error != 0) {
    return error;
  }
  if (tells_first()) {
    if (const int error = told_deflation_.hold(index); error != 0) {
      log_warning(std::string("pages are locked but not pinned: ") + std::strerror(error) +
                  "; should compaction move one, its old frame is used without the host's consent");
    }
  }
  return 0;
}

void Inflater::keep_what_was_told() {
  // The host may have discarded these, so the guest may not use their frames: they stay, and are
  // reported again in the next session.
  const std::vector<GuestFrame> unknown(pipeline_.batch_pages(), LockedFloor::kUnknown);
  for (const std::uint64_t name : told_) {
    Batch* const batch = pipeline_.find_told(name);
    if (batch != nullptr && lock(*batch, unknown) == 0) {
      static_cast<void>(pipeline_.release(*batch));
    }
  }
  moved_.begin_anew();
}

bool Inflater::may_leave() const {
  return tells_first() ? resident_pages() == 0 : told_.empty() && !moved_.is_waiting();
}

bool Inflater::takes_leave_first(End end) {
  if (end != End::stopped || may_leave()) {
    return false;
  }
  if (!tells_first()) {
    leave_until_ = Clock::now() + kAnswerWithin;
    return true;
  }
  if (!link_.is_established()) {
    log_warning(to_string(Bytes::pages(resident_pages())) +
                " go back to the guest without the host's consent: it is not connected");
    return false;
  }
  shared_.set_limits({Bytes(0), Bytes(0)});
  leave_until_ = Clock::now() + kLeaveWithin;
  return true;
}

}  // namespace fileballoon::guest
