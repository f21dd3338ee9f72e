#include "bench/live_table.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <ostream>

namespace fileballoon::bench {
namespace {

constexpr int kBarWidth = 24;

std::string mib(Bytes bytes) { return fmt::format("{:.0f}", bytes.as_mib()); }

}  // namespace

void LiveTable::print_header() {
  out_ << fmt::format("{:>6}  {:<28} {:>26}  {:>18}  {:>9}\n", "", "", "guest, MiB", "balloon, MiB",
                      "host, MiB")
       << fmt::format("{:>6}  {:<28} {:>8} {:>9} {:>7}  {:>9} {:>8}  {:>9}\n", "time", "phase",
                      "free", "available", "cache", "target", "resident", "footprint");
  out_.flush();
}

std::string LiveTable::line(const LiveSample& sample) const {
  const double share =
      static_cast<double>(sample.host_footprint.count()) / static_cast<double>(ram_.count());
  const auto filled =
      static_cast<std::size_t>(std::lround(std::clamp(share, 0.0, 1.0) * kBarWidth));
  return fmt::format("{:>5.1f}s  {:<28} {:>8} {:>9} {:>7}  {:>9} {:>8}  {:>9} |{:<{}}|",
                     sample.time_s, sample.phase, mib(sample.guest_free),
                     mib(sample.guest_available), mib(sample.guest_cache),
                     mib(sample.balloon_target), mib(sample.balloon_resident),
                     mib(sample.host_footprint), std::string(filled, '#'), kBarWidth);
}

// "\r" to the start of the line, "ESC [K" clears what the longer line before left.
void LiveTable::update(const LiveSample& sample) {
  if (!redraw_) return;
  out_ << "\r\033[K" << line(sample);
  out_.flush();
}

void LiveTable::commit(const LiveSample& sample) {
  if (redraw_) out_ << "\r\033[K";
  out_ << line(sample) << '\n';
  out_.flush();
}

}  // namespace fileballoon::bench
