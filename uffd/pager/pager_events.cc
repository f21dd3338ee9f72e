#include "uffd/pager/pager_events.h"

namespace fileballoon {

std::string_view name_of(PagerEvent::Kind kind) {
  switch (kind) {
    case PagerEvent::Kind::stopped:
      return "stopped";
    case PagerEvent::Kind::resumed:
      return "resumed";
    case PagerEvent::Kind::page_lost:
      return "page-lost";
    case PagerEvent::Kind::page_withheld:
      return "page-withheld";
    case PagerEvent::Kind::huge_page:
      return "huge-page";
  }
  return "unknown";
}

std::string to_string(const PagerEvent& event) {
  const std::string where =
      "page " + std::to_string(event.page) + " of memory object " + std::to_string(event.object);
  switch (event.kind) {
    case PagerEvent::Kind::stopped:
      return "page-out stopped: " + std::string(to_string(event.status));
    case PagerEvent::Kind::resumed:
      return "page-out resumed";
    case PagerEvent::Kind::page_lost:
      return where + " is lost (" + std::string(to_string(event.status)) +
             "); it was poisoned, so that whatever touches it is told";
    case PagerEvent::Kind::page_withheld:
      return where + " is lost (" + std::string(to_string(event.status)) +
             "); this kernel cannot poison it (Linux 6.6 can), so that whatever touches it waits, "
             "and "
             "the VM cannot be detached: start it anew";
    case PagerEvent::Kind::huge_page:
      return where +
             " lies in a huge page that does not split; page-out stopped. Set "
             "/sys/kernel/mm/transparent_hugepage/shmem_enabled to never";
  }
  return "unknown event";
}

void PagerEvents::post(const PagerEvent& event) {
  const std::lock_guard guard(mutex_);
  if (written_ - read_ == kCapacity) {
    ++read_;
    ++dropped_;
  }
  ring_[written_++ % kCapacity] = event;
}

std::uint64_t PagerEvents::drain(const std::function<void(const PagerEvent&)>& visit) {
  std::array<PagerEvent, kCapacity> waiting;
  std::size_t count = 0;
  std::uint64_t dropped = 0;
  {
    const std::lock_guard guard(mutex_);
    while (read_ < written_) {
      waiting[count++] = ring_[read_++ % kCapacity];
    }
    dropped = std::exchange(dropped_, 0);
  }
  for (std::size_t i = 0; i < count; ++i) {
    visit(waiting[i]);
  }
  return dropped;
}

}  // namespace fileballoon
