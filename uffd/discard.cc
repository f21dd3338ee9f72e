#include "uffd/discard.h"

#include "uffd/discard_piece.h"

namespace fileballoon {

DiscardOutcome PunchDiscarder::discard(std::uint32_t backing, HostRange range) {
  DiscardOutcome outcome;
  if (backing >= ram_.backings().size()) {
    outcome.failed = static_cast<std::uint32_t>(range.pages());
    return outcome;
  }
  const Backing& object = ram_.backings()[backing];
  const ShmemPages memory(object.fd.get());
  locks_.for_each_piece(backing, clip(range, object.size, outcome),
                        [&](HostRange piece) { outcome += discard_piece(memory, piece); });
  return outcome;
}

}  // namespace fileballoon
