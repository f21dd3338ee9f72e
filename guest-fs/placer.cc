#include "guest-fs/placer.h"

#include <algorithm>

namespace fileballoon::guest {

Placer::Placer(const BalloonFile& file) : file_(file), window_(file, kGroup) {
  for (std::uint64_t pages = 0; pages < kGroup; pages += file.batch_pages()) {
    pipes_.emplace_back(file.batch_pages());
  }
}

void Placer::place_some() {
  if (waiting_.empty()) {
    return;
  }
  const Extent group = waiting_.pop_front(kGroup);
  if (file_.resident(group) != group.count || !window_.show(group)) {
    return;
  }
  bool held = true;
  std::uint64_t done = 0;
  for (PinPipe& pipe : pipes_) {
    const std::uint64_t pages = std::min(pipe.capacity(), group.count - done);
    held =
        held && pipe.pin(static_cast<std::byte*>(window_.address()) + done * kPageSize, pages) == 0;
    done += pages;
  }
  window_.hide();
  if (held) {  // the advice would evict what is not pinned
    file_.place_for_reclaim(group);
  }
  for (PinPipe& pipe : pipes_) {
    pipe.release();
  }
}

}  // namespace fileballoon::guest
