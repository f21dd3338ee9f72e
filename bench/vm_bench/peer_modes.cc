#include "bench/vm_bench/peer_modes.h"

#include <stdexcept>

#include "bench/vm_bench/proxmox_balloon.h"

namespace fileballoon::bench {
namespace {

constexpr auto kDropEvery = std::chrono::seconds(10);
/// guest-stats-polling-interval, as Proxmox sets it.
constexpr int kStatsSeconds = 2;

void set_balloon(vmkit::Vm& vm, Bytes left) {
  const auto done = vm.qmp().execute("balloon", {{"value", left.count()}});
  if (!done) throw std::runtime_error(done.error().message);
}

Bytes balloon_actual(vmkit::Vm& vm) {
  const auto answer = vm.qmp().execute("query-balloon");
  if (!answer) throw std::runtime_error(answer.error().message);
  return Bytes(answer->at("actual").to_number<std::uint64_t>());
}

}  // namespace

void VirtioBalloonMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.deflate_on_oom = true;
}

void VirtioBalloonMode::request(Bytes size) { set_balloon(vm(), vm().options().memory - size); }

Bytes VirtioBalloonMode::inflated() { return vm().options().memory - balloon_actual(vm()); }

// The driver counts what deflate-on-oom took in the kernel's own counter.
std::uint64_t VirtioBalloonMode::yielded_pages() { return vm().guest().vmstat("balloon_deflate"); }

void VirtioBalloonStatsMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.deflate_on_oom = true;
}

void VirtioBalloonStatsMode::start(vmkit::Vm& vm) {
  Mode::start(vm);
  const auto done = vm.qmp().execute("qom-set", {{"path", "/machine/peripheral/balloon"},
                                                 {"property", "guest-stats-polling-interval"},
                                                 {"value", kStatsSeconds}});
  if (!done) throw std::runtime_error(done.error().message);
}

void VirtioBalloonStatsMode::steer() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + ProxmoxBalloon::kRound;
  const Bytes ram = vm().options().memory;
  const ProxmoxBalloon rule(ram, Bytes(ram.count() / 2), ram);
  const Bytes actual = balloon_actual(vm());
  const Bytes wanted = rule.next(actual, vm().footprint().now()).page_floor();
  if (wanted != actual) set_balloon(vm(), wanted);
}

void DropCachesMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.free_page_reporting = true;
}

void DropCachesMode::steer() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + kDropEvery;
  vm().guest().put_file("/proc/sys/vm/drop_caches", "1");
}

void FreePageReportingMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.free_page_reporting = true;
}

}  // namespace fileballoon::bench
