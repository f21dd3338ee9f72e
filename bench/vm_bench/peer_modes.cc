#include "bench/vm_bench/peer_modes.h"

#include <stdexcept>

namespace fileballoon::bench {

void VirtioBalloonMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.deflate_on_oom = true;
}

void VirtioBalloonMode::request(Bytes size) {
  const Bytes left = vm().options().memory - size;
  const auto done = vm().qmp().execute("balloon", {{"value", left.count()}});
  if (!done) throw std::runtime_error(done.error().message);
}

Bytes VirtioBalloonMode::inflated() {
  const auto answer = vm().qmp().execute("query-balloon");
  if (!answer) throw std::runtime_error(answer.error().message);
  return vm().options().memory - Bytes(answer->at("actual").to_number<std::uint64_t>());
}

// The driver counts what deflate-on-oom took in the kernel's own counter.
std::uint64_t VirtioBalloonMode::yielded_pages() { return vm().guest().vmstat("balloon_deflate"); }

void FreePageReportingMode::configure(vmkit::VmOptions& options) const {
  options.virtio_balloon = true;
  options.free_page_reporting = true;
}

}  // namespace fileballoon::bench
