#include "bench/vm_bench/measure.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

namespace fileballoon::bench {
namespace {

double guest_cpu_s(vmkit::Vm& vm) {
  return vm.guest().call("cpu").at("busy_s").to_number<double>();
}

}  // namespace

Stage boot_for(const std::string& name, const Settings& settings, const std::string& disk) {
  Stage stage;
  stage.mode = make_mode(name);
  vmkit::VmOptions options;
  options.memory = settings.memory;
  options.cpus = settings.cpus;
  options.disk = disk;
  stage.mode->configure(options);
  stage.vm = std::make_unique<vmkit::Vm>(options);
  stage.mode->start(*stage.vm);
  return stage;
}

GuestCost GuestCost::now(vmkit::Vm& vm) {
  return {guest_cpu_s(vm), static_cast<double>(vm.guest().vmstat("pgpgin")) / 1024,
          vm.guest().vmstat("workingset_refault_file")};
}

GuestCost GuestCost::operator-(const GuestCost& earlier) const {
  return {cpu_s - earlier.cpu_s, disk_read_mib - earlier.disk_read_mib,
          refaulted_pages - earlier.refaulted_pages};
}

std::uint64_t emulator_tlb_flushes(vmkit::Vm& vm) {
  const auto text = vm.qmp().human("info jit");
  if (!text) return 0;
  // "TLB full flushes    3", "TLB partial flushes 12": of all of a CPU's TLBs at once, and of one.
  std::istringstream words(text.value());
  std::string word;
  std::uint64_t sum = 0;
  for (std::string before; words >> word; before = word) {
    std::uint64_t count = 0;
    if (word == "flushes" && (before == "full" || before == "partial") && words >> count) {
      sum += count;
    }
  }
  return sum;
}

double waited_for_cpu_seconds(pid_t pid) {
  double sum_ns = 0;
  std::error_code gone;
  for (const auto& thread :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), gone)) {
    std::ifstream numbers(thread.path() / "schedstat");  // ns on a CPU, ns waited, time slices
    double ran_ns = 0;
    double waited_ns = 0;
    if (numbers >> ran_ns >> waited_ns) sum_ns += waited_ns;
  }
  return sum_ns / 1e9;
}

CpuMeter::CpuMeter(vmkit::Vm& vm, const Mode& mode) : vm_(vm), mode_(mode), start_(absolute()) {}

CpuMeter::Reading CpuMeter::absolute() {
  Reading now;
  now.qemu_s = vm_.qemu_cpu_seconds();
  now.helper_s = mode_.helper_cpu_seconds();
  now.guest_s = guest_cpu_s(vm_);
  now.agent_s =
      vm_.guest().call("processes", {{"name", "balloonfs"}}).at("cpu_s").to_number<double>();
  return now;
}

CpuMeter::Reading CpuMeter::read() {
  const Reading now = absolute();
  return {now.guest_s - start_.guest_s, now.agent_s - start_.agent_s, now.qemu_s - start_.qemu_s,
          now.helper_s - start_.helper_s};
}

}  // namespace fileballoon::bench
