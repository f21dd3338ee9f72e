// What the host says to the inflater, and what it does about it. Part of Inflater, in a file of its
// own.
#include <algorithm>
#include <cstring>

#include "guest-fs/guest_memory.h"
#include "guest-fs/inflater.h"
#include "guest-fs/log.h"

namespace fileballoon::guest {

void Inflater::on_session_start(const wire::Hello& host) {
  host_backs_ = (host.features & wire::kFeaturePopulate) != 0;
  last_sent_.values.clear();
  next_stats_ = {};
}

void Inflater::on_session_end() {
  moved_.cancel();
  deflate_reports_.forget();
  told_deflation_.cancel();
  if (tells_first()) {
    keep_what_was_told();
  }
  told_.clear();
  // The host may or may not have discarded these; nobody will say. Dropped pages cost it memory
  // only when the guest uses them for something else.
  stats_.cancelled_pages += pipeline_.cancel();
}

void Inflater::notice_plugged_memory() {
  std::vector<FrameRange> ranges = parse_iomem(read_file("/proc/iomem"));
  if (ranges.empty() || ranges == config_.ram_ranges || config_.ram_ranges.empty()) {
    return;
  }
  config_.ram_ranges = std::move(ranges);
  config_.ram = Bytes::pages(total_frames(config_.ram_ranges));
  log_info("this guest has " + to_string(config_.ram) + " of memory now");
  // The next session says so; a host that does not know the new frames in this one refuses them.
  link_.set_ram(config_.ram_ranges);
  if (host_limits_) {
    on_limits(*host_limits_);
  }
}

void Inflater::on_limits(const wire::LimitsMessage& message) {
  host_limits_ = message;
  Limits wanted = message.limits;
  if (wanted.target > config_.ram || wanted.floor > wanted.target) {
    log_warning("the host asks for target " + to_string(wanted.target) + " and floor " +
                to_string(wanted.floor) + "; taking what fits into " + to_string(config_.ram));
    wanted.target = std::min(wanted.target, config_.ram);
    wanted.floor = std::min(wanted.floor, wanted.target);
  }
  shared_.set_limits({wanted.target.page_floor(), wanted.floor.page_floor()});
  stats_.epoch = message.epoch;
  cache_.set_epoch(message.epoch);
}

void Inflater::on_ack(const wire::Ack& ack) {
  if (moved_.is_told(ack.batch)) {
    const MovedPages::Told told = moved_.acknowledge(ack);
    stats_.migrated_pages += told.moved;
    // The kernel has read the frames that they left, which gives those memory on the host.
    exchange_.note_growth(told.moved);
    stats_.not_zero_pages += told.became.not_zero;
    stats_.refused_pages += told.became.refused;
    stats_.failed_pages += told.became.failed;
    return;
  }
  std::erase(told_, ack.batch);
  Batch* const batch = pipeline_.find_told(ack.batch);
  if (batch == nullptr || ack.outcomes.size() != batch->ranges.size()) {
    log_warning("the host acknowledged a batch that is not under way; ignored");
    return;
  }
  std::uint64_t discarded = 0;
  for (std::size_t i = 0; i < ack.outcomes.size(); ++i) {
    const FrameRange& range = batch->ranges[i];
    const wire::RangeOutcome& outcome = ack.outcomes[i];
    discarded += outcome.discarded;
    stats_.not_zero_pages += outcome.not_zero;
    stats_.refused_pages += outcome.refused;
    stats_.failed_pages += outcome.failed;
    if (outcome.discarded * std::uint64_t{2} < range.count && !tells_first()) {
      // Keeping pages that the host did not free would cost the guest memory for nothing.
      for (std::uint64_t page = 0; page < batch->extent.count; ++page) {
        const GuestFrame frame = batch->frames.at(page);
        if (frame >= range.first && frame < range.end()) {
          batch->rejected.set(page);
        }
      }
    }
  }
  stats_.inflated_pages += discarded;
  if (batch->rejected.count() * 2 > batch->extent.count) {
    stop_growing(GrowthReason::host_rejects, Growth::kBackOff);  // so would be more of the same
  }
  if (batch->for_floor && batch->rejected.none()) {
    const int error = lock(*batch, batch->frames);
    if (error == 0) {
      static_cast<void>(pipeline_.release(*batch));
      return;
    }
    log_warning("cannot lock more than " + to_string(Bytes::pages(floor_.pages())) +
                " of the floor: " + std::strerror(error) +
                "; the rest stays evictable (raise RLIMIT_MEMLOCK, or lower the floor)");
    lockable_pages_ = floor_.pages();
    lock_again_ = Clock::now() + kLockRetry;
  }
  const Extent extent = batch->extent;
  for (std::uint64_t page = 0; page < extent.count; ++page) {
    if (batch->rejected.test(page)) {
      batch->frames.at(page) = FrameBook::kGone;
    }
  }
  const std::uint64_t rejected = pipeline_.release(*batch);
  become_evictable(extent, batch->frames);
  evictable_pages_ -= rejected;
  if (rejected == 0) {
    placer_.add(extent);
  }
}

void Inflater::on_purge(const wire::Purge& purge) {
  log_info("the host asks for " + to_string(purge.amount) + " of page cache");
  cache_.purge(purge.amount);
}

void Inflater::on_cache(const wire::CacheOrder& order) {
  log_info("the host chooses the cache mode " + std::string(to_string(order.mode)));
  cache_.set_mode(order.mode);
}

void Inflater::on_populated(const wire::Populated& answer) {
  const ToldDeflation::Answer got = told_deflation_.answered(answer, Clock::now());
  if (!got.known) {
    log_warning("the host says that frames are backed which nobody asked for; ignored");
    return;
  }
  stats_.unbacked_pages += got.unbacked;
  if (!got.left) {
    log_warning("the host could not back " + std::to_string(got.unbacked) +
                " frames; they stay in the balloon, and it is asked again");
    return;
  }
  scratch_.clear();
  floor_.shrink_to(*got.left, scratch_);
  for (const LockedFloor::Released& released : scratch_) {
    evictable_.push_back(released.extent);
    evictable_pages_ += released.extent.count;
  }
  stats_.dropped_pages += drop_evictable(evictable_pages_);
}

void Inflater::on_host_state(const wire::HostState& state) {
  stats_.host_absent_bytes = state.absent.count();
}

}  // namespace fileballoon::guest
