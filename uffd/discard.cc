#include "uffd/discard.h"

#include <fcntl.h>

#include <algorithm>

#include "uffd/zero_check.h"

namespace fileballoon {
namespace {

// Verify, punch and look again at one piece, whose lock is held.
DiscardOutcome punch_piece(int fd, HostRange range) {
  DiscardOutcome outcome;
  ZeroMap before;
  look(fd, range, before);
  const std::size_t pages = range.pages();
  bool punched = false;
  for (std::size_t page = 0; page < pages;) {
    if (!before.zero.test(page)) {
      ++(before.bad.test(page) ? outcome.failed : outcome.not_zero);
      ++page;
      continue;
    }
    // One call for a run of zero pages, holes inside it included: they cost next to nothing.
    std::size_t count = 0;
    bool any_backed = false;
    while (page + count < pages && before.zero.test(page + count)) {
      any_backed = any_backed || before.backed.test(page + count);
      ++count;
    }
    if (any_backed) {
      punched = true;
      // Its result does not decide: only what SEEK_DATA sees afterwards is counted. (A punch inside
      // a shmem huge page that cannot be split returns 0 and frees nothing.)
      (void)::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(range.start.bytes() + page * kPageSize),
                        static_cast<off_t>(count * kPageSize));
    }
    page += count;
  }
  ZeroMap after;
  if (punched) {
    look_backed(fd, range, after);
  } else {
    after.backed = before.backed;
  }
  for (std::size_t page = 0; page < pages; ++page) {
    if (!before.zero.test(page)) {
      continue;
    }
    if (after.backed.test(page)) {
      ++outcome.failed;
    } else {
      ++outcome.discarded;
      outcome.freed += before.backed.test(page) ? 1 : 0;
    }
  }
  return outcome;
}

}  // namespace

DiscardOutcome PunchDiscarder::discard(std::uint32_t backing, HostRange range) {
  DiscardOutcome outcome;
  if (backing >= ram_.backings().size()) {
    outcome.failed = static_cast<std::uint32_t>(range.pages());
    return outcome;
  }
  const Backing& object = ram_.backings()[backing];
  const std::uint64_t limit = object.size.count();
  const std::uint64_t start = std::min(range.start.bytes(), limit);
  const Bytes inside(std::min(range.size.count(), limit - start));
  locks_.for_each_piece(backing, {HostOffset(start), inside.page_floor()},
                        [&](HostRange piece) { outcome += punch_piece(object.fd.get(), piece); });
  outcome.failed += static_cast<std::uint32_t>(range.pages() - inside.whole_pages());
  return outcome;
}

}  // namespace fileballoon
