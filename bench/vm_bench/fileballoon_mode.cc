#include "bench/vm_bench/fileballoon_mode.h"

#include <chrono>
#include <string>

#include "fileballoon/process_cpu.h"

namespace fileballoon::bench {
namespace {

constexpr const char* kVm = "guest";
constexpr auto kEpochLength = std::chrono::seconds(2);

}  // namespace

void FileballoonMode::start(vmkit::Vm& vm) {
  Mode::start(vm);
  daemon_ = std::make_unique<vmkit::Daemon>();
  daemon_->attach(kVm, vm, refault_);
  keepers_ = vmkit::keepers_of(vm.pid());
  agent_ = std::make_unique<vmkit::Agent>(vm);
  agent_->mount(cache_.empty() ? "" : "cache=" + cache_);
  daemon_->wait_connected(kVm);
}

// A timer in the place of an arbiter.
void FileballoonMode::steer() {
  const auto now = std::chrono::steady_clock::now();
  if (cache_ != "epoch" || now < next_epoch_) return;
  next_epoch_ = now + kEpochLength;
  daemon_->call("epoch", {{"name", kVm}, {"advance", true}});
}

void FileballoonMode::request(Bytes size) { daemon_->set_target(kVm, size); }

// What the daemon has discarded and seen to be gone. Exact while the balloon only grows, which is
// when a scenario asks.
Bytes FileballoonMode::inflated() {
  return Bytes::pages(daemon_->counter(kVm, "frames_discarded"));
}

std::uint64_t FileballoonMode::yielded_pages() { return agent_->number("evicted_pages"); }

std::uint64_t FileballoonMode::reclaimed_pages() {
  const auto yielded = agent_->number("yielded_pages");  // before evicted_pages, which includes it
  return agent_->number("evicted_pages") - yielded;
}

double FileballoonMode::helper_cpu_seconds() const {
  double sum = daemon_->process().cpu_seconds();
  for (const pid_t keeper : keepers_) {
    sum += cpu_seconds_of(keeper);
  }
  return sum;
}

double FileballoonMode::helper_rss_mib() const {
  return static_cast<double>(daemon_->process().rss_kib()) / 1024;
}

}  // namespace fileballoon::bench
