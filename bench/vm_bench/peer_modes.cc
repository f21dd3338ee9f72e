#include "bench/vm_bench/peer_modes.h"

#include <algorithm>
#include <stdexcept>

namespace fileballoon::bench {
namespace {

constexpr auto kRound = std::chrono::seconds(10);
constexpr Bytes kMostChange = Bytes::mib(100);
constexpr Bytes kIgnored = Bytes::mib(10);
constexpr Bytes kSmallestGuest = Bytes::mib(256);

void set_balloon(vmkit::Vm& vm, Bytes left) {
  const auto done = vm.qmp().execute("balloon", {{"value", left.count()}});
  if (!done) throw std::runtime_error(done.error().message);
}

}  // namespace

void VirtioBalloonMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.deflate_on_oom = true;
}

void VirtioBalloonMode::request(Bytes size) { set_balloon(vm(), vm().options().memory - size); }

Bytes VirtioBalloonMode::inflated() {
  const auto answer = vm().qmp().execute("query-balloon");
  if (!answer) throw std::runtime_error(answer.error().message);
  return vm().options().memory - Bytes(answer->at("actual").to_number<std::uint64_t>());
}

// The driver counts what deflate-on-oom took in the kernel's own counter.
std::uint64_t VirtioBalloonMode::yielded_pages() { return vm().guest().vmstat("balloon_deflate"); }

void VirtioBalloonStatsMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.deflate_on_oom = true;
}

void VirtioBalloonStatsMode::steer() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + kRound;
  const Bytes ram = vm().options().memory;
  if (actual_ == Bytes(0)) actual_ = ram;
  const Bytes used = vm().footprint().now();
  const Bytes wanted(ram.count() / 10 * 8);
  const Bytes free = vm().guest().meminfo("MemFree");
  if (wanted > used + kIgnored) {  // the host has room: the guest may have more
    actual_ = std::min(ram, actual_ + std::min(kMostChange, wanted - used));
  } else if (used > wanted + kIgnored && free > Bytes(kSmallestGuest.count() / 4)) {
    actual_ = std::max(kSmallestGuest, actual_ - std::min(kMostChange, used - wanted));
  }
  set_balloon(vm(), actual_.page_floor());
}

void DropCachesMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.free_page_reporting = true;
}

void DropCachesMode::steer() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + kRound;
  vm().guest().put_file("/proc/sys/vm/drop_caches", "1");
}

void FreePageReportingMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.free_page_reporting = true;
}

}  // namespace fileballoon::bench
