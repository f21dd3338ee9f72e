#include "guest-fs/placer.h"

#include <algorithm>

namespace fileballoon::guest {

void Placer::place_some() {
  if (waiting_.empty()) {
    return;
  }
  const Extent group = waiting_.pop_front(kGroup);
  if (file_.resident(group) != group.count) {
    return;
  }
  bool held = true;
  for (std::uint64_t done = 0; held && done < group.count; done += PinPipe::kCapacity) {
    const std::uint64_t pages = std::min(PinPipe::kCapacity, group.count - done);
    held = pipes_.at(done / PinPipe::kCapacity)
               .pin_file(file_.fd(), (group.first + done).byte_offset(), pages) == 0;
  }
  if (held) {  // the advice would evict what is not pinned
    file_.place_for_reclaim(group);
  }
  for (PinPipe& pipe : pipes_) {
    pipe.release();
  }
}

}  // namespace fileballoon::guest
