#include "host/report.h"

#include <algorithm>

namespace fileballoon::host {
namespace {

/// What is discarded between two looks at whether the batch still counts: a folio of the balloon.
constexpr Bytes kStep = Bytes::mib(2);

/// False: cancelled meanwhile.
bool discard(const BackingRange& piece, RamOwner& owner, const std::atomic<bool>& cancelled,
             wire::RangeOutcome& outcome) {
  const HostRange whole = piece.range;
  for (Bytes at; at < whole.size; at = at + kStep) {
    if (cancelled.load(std::memory_order_relaxed)) {
      return false;
    }
    const DiscardOutcome done =
        owner.discard({piece.backing, {whole.start + at, std::min(kStep, whole.size - at)}});
    outcome.discarded += done.discarded;
    outcome.not_zero += done.not_zero;
    outcome.failed += done.failed;
  }
  return true;
}

}  // namespace

std::optional<std::vector<wire::RangeOutcome>> execute_report(const wire::Report& report,
                                                              const RamLayout& layout,
                                                              RamOwner& owner,
                                                              const std::atomic<bool>& cancelled) {
  std::vector<wire::RangeOutcome> outcomes;
  outcomes.reserve(report.ranges.size());
  std::vector<BackingRange> pieces;
  GuestFrame next;  // ranges must start here or above
  for (const FrameRange& range : report.ranges) {
    wire::RangeOutcome outcome;
    pieces.clear();
    if (range.first < next || !layout.translate(range, pieces)) {
      outcome.refused = static_cast<std::uint32_t>(range.count);
      outcomes.push_back(outcome);
      continue;
    }
    for (const BackingRange& piece : pieces) {
      if (!discard(piece, owner, cancelled, outcome)) {
        return std::nullopt;
      }
    }
    next = range.end();
    outcomes.push_back(outcome);
  }
  return outcomes;
}

std::vector<std::uint32_t> execute_populate(const wire::Populate& request, const RamLayout& layout,
                                            RamOwner* owner) {
  std::vector<std::uint32_t> backed(request.ranges.size());
  std::vector<BackingRange> pieces;
  GuestFrame next;  // ranges must start here or above
  for (std::size_t i = 0; i < backed.size() && owner != nullptr; ++i) {
    const FrameRange& range = request.ranges[i];
    pieces.clear();
    if (range.first < next || !layout.translate(range, pieces)) {
      continue;
    }
    const bool all = std::all_of(pieces.begin(), pieces.end(), [owner](const BackingRange& piece) {
      return owner->populate(piece) == 0;
    });
    backed[i] = all ? static_cast<std::uint32_t>(range.count) : 0;
    next = range.end();
  }
  return backed;
}

}  // namespace fileballoon::host
