// What the arbiter says about itself: one line for a VM, one for the host.
#include "fileballoon/arbiter.h"

namespace fileballoon {
namespace {

Bytes bytes_of(Pages pages) {
  return Bytes::pages(pages > 0 ? static_cast<std::uint64_t>(pages) : 0);
}
std::string text_of(Pages pages) { return to_string(bytes_of(pages)); }

std::string seconds(std::chrono::nanoseconds time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(time).count()) + " s";
}

}  // namespace

std::string Arbiter::explain(VmId id) const {
  const Vm& vm = vms_[id.index];
  const std::string band_name = "band " + std::to_string(vm.band);
  const std::string target = text_of(vm.target);
  switch (vm.reason) {
    case TargetReason::starting:
      return vm.starting ? "no target yet: waiting for the next tick" : "first target " + target;
    case TargetReason::settled:
      return "stays at " + target;
    case TargetReason::within_band:
      return "stays at " + target + ": the plan of " + text_of(vm.goal) +
             " is too close to be worth an order";
    case TargetReason::holding:
      return "stays at " + target + " for " + seconds(vm.hold) +
             " more: the guest took memory back a moment ago";
    case TargetReason::fast_deflate:
      return "raised to " + target + " at once: the guest took memory back fast";
    case TargetReason::raised_need:
      return "raised to " + target + ": the guest needs " + text_of(vm.need);
    case TargetReason::raised_calm:
      return "raised to " + target + ": memory pressure on the host is gone";
    case TargetReason::lowered_idle:
      return "lowered to " + target + ": memory above the need of " + text_of(vm.need) +
             " is wanted elsewhere";
    case TargetReason::lowered_need:
      return "lowered to " + target + ", " + text_of(vm.need - vm.target) +
             " below its need: " + band_name + " or a higher one is short";
    case TargetReason::waiting:
      return "at " + target + ", to be raised to " + text_of(std::max(vm.goal, vm.target)) +
             ": waiting for others to give memory";
    case TargetReason::at_minimum:
      return "at its minimum of " + text_of(vm.minimum) +
             (vm.need > vm.target ? ": higher bands or VMs of its own take the rest" : "");
    case TargetReason::stuck_paging:
      return "lowered to " + target + ": nothing came by will for " + seconds(vm.above) + "; " +
             text_of(vm.by_force) + " by paging";
    case TargetReason::stuck_refused:
      return "left at " + target +
             ": the guest gives nothing and may not be paged; asked again in " + seconds(vm.stuck);
  }
  return "?";
}

std::string Arbiter::explain_host() const {
  std::string text = "memory " + to_string(summary_.level) + ": " +
                     to_string(summary_.capacity - summary_.footprints) + " of " +
                     to_string(summary_.capacity) + " free; targets " +
                     to_string(summary_.targets) + " of " + to_string(summary_.budget) +
                     " planned, needs " + to_string(summary_.needs);
  for (unsigned b = 0; b < kBands; ++b) {
    if (summary_.lacking.at(b) > Bytes(0)) {
      text += "; band " + std::to_string(b) + " lacks " + to_string(summary_.lacking.at(b));
    }
  }
  if (summary_.shortage > Bytes(0)) {
    text += "; the minimums alone exceed the host by " + to_string(summary_.shortage) +
            ": lower one or move a VM away";
  }
  return text;
}

}  // namespace fileballoon
