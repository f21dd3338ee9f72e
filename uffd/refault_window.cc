#include "uffd/refault_window.h"

#include <algorithm>

namespace fileballoon {

RefaultWindow::Answer RefaultWindow::next(std::uint32_t object, std::uint64_t page) {
  ++now_;
  fault_page_ = page;
  for (Stream& stream : streams_) {
    if (stream.end == 0 || stream.object != object) {
      continue;
    }
    // A few pages may be skipped (they were present, or another thread took them), no more than
    // the stream's own stride.
    const std::uint64_t slack = stream.window;
    const bool up = stream.direction >= 0 && page >= stream.end && page - stream.end < slack;
    const bool down = stream.direction <= 0 && page < stream.first && stream.first - page <= slack;
    if (!up && !down) {
      continue;
    }
    ++counters_.sequential;
    counters_.used += stream.end - stream.first - 1;
    stream.direction = up ? 1 : -1;
    stream.window = std::min(options_.max_pages,
                             stream.window == 1 ? options_.second_pages : stream.window * 2);
    stream.used_at = now_;
    last_ = &stream;
    if (up) {
      return {page, stream.window};
    }
    const std::uint64_t first = page + 1 > stream.window ? page + 1 - stream.window : 0;
    return {first, static_cast<std::uint32_t>(page + 1 - first)};
  }
  Stream& stream = oldest();
  if (stream.end != 0) {
    counters_.unused += stream.end - stream.first - 1;
  }
  stream = {object, page, page + 1, 1, 0, now_};
  last_ = &stream;
  return {page, 1};
}

void RefaultWindow::filled(std::uint64_t first, std::uint32_t count) {
  if (last_ == nullptr || count == 0) {
    return;
  }
  last_->first = first;
  last_->end = first + count;
  // A window cut short by memory that is present does not keep its full size: what lies behind it
  // was not discarded, and the stream has to show itself again.
  last_->window = std::max<std::uint32_t>(1, std::min(last_->window, count * 2));
}

RefaultWindow::Stream& RefaultWindow::oldest() {
  return *std::min_element(streams_.begin(), streams_.end(),
                           [](const Stream& a, const Stream& b) { return a.used_at < b.used_at; });
}

}  // namespace fileballoon
