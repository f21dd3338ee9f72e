#include "bench/vm_bench/fleet.h"

#include <fstream>
#include <stdexcept>

#include "fileballoon/process_cpu.h"
#include "tests/vm/kit/agent.h"
#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/daemon.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::bench {
namespace {

std::string name_of(std::size_t i) { return "guest" + std::to_string(i + 1); }

// Memory of a process's own: what it shares (a guest's RAM, mapped) is counted with the guest.
Bytes own_memory(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string key; file >> key;) {
    if (key == "RssAnon:") {
      std::uint64_t kib = 0;
      file >> kib;
      return Bytes(kib * 1024);
    }
  }
  return Bytes(0);
}

/// This project: the daemon's arbiter with a limit of the host, one policy for all.
class DaemonFleet final : public Fleet {
 public:
  explicit DaemonFleet(std::string policy) : policy_(std::move(policy)), store_("store") {}

  void start(Vms& vms, Bytes limit) override {
    const bool pages = policy_ != "balloon-only";
    std::string config = "[arbiter]\nmode = \"on\"\nlimit = \"" + std::to_string(limit.count()) +
                         "\"\nlock = \"" + store_.file("arbiter.lock") + "\"\n";
    if (pages) config += "[paging]\npath = \"" + store_.path() + "\"\n";
    daemon_ = std::make_unique<vmkit::Daemon>(config);
    pids_.push_back(daemon_->process().pid());
    for (std::size_t i = 0; i < vms.size(); ++i) {
      daemon_->attach(name_of(i), *vms[i], pages ? "uffd" : "kernel");
      daemon_->call("mem-policy", {{"name", name_of(i)}, {"policy", policy_}});
      vmkit::Agent(*vms[i]).mount();
      for (const pid_t keeper : vmkit::keepers_of(vms[i]->pid())) pids_.push_back(keeper);
    }
    for (std::size_t i = 0; i < vms.size(); ++i) {
      daemon_->wait_connected(name_of(i));
    }
    guests_ = vms.size();
  }
  [[nodiscard]] Bytes helpers() const override {
    Bytes sum;
    for (const pid_t pid : pids_) sum += own_memory(pid);
    return sum;
  }
  [[nodiscard]] double helper_cpu_s() const override {
    double sum = 0;
    for (const pid_t pid : pids_) sum += cpu_seconds_of(pid);
    return sum;
  }
  [[nodiscard]] Paging paging() override {
    Paging sum;
    for (std::size_t i = 0; i < guests_; ++i) {
      const auto stats = daemon_->stats(name_of(i));
      const auto* pager = stats.if_contains("paging");
      if (pager == nullptr || !pager->is_object()) continue;
      const auto number = [&](const char* key) {
        const auto* value = pager->as_object().if_contains(key);
        return value != nullptr ? value->to_number<std::uint64_t>() : 0;
      };
      sum.out += Bytes::pages(number("paged_out_pages"));
      sum.in += Bytes::pages(number("paged_in_pages"));
      sum.in_faults += number("page_in_faults");
      sum.held_faults += number("held_faults");
    }
    return sum;
  }

 private:
  std::string policy_;
  vmkit::TempDir store_;
  std::unique_ptr<vmkit::Daemon> daemon_;
  std::vector<pid_t> pids_;
  std::size_t guests_ = 0;
};

/// An operator who divides the limit evenly once, by QMP, and lets the guests' drivers give pages
/// back rather than run out of memory.
class VirtioByHand final : public Fleet {
 public:
  void configure(vmkit::VmOptions& options) const override {
    options.virtio_balloon = true;
    options.deflate_on_oom = true;
  }
  void start(Vms& vms, Bytes limit) override {
    for (const auto& vm : vms) {
      const Bytes share = std::min(vm->options().memory, Bytes(limit.count() / vms.size()));
      const auto done = vm->qmp().execute("balloon", {{"value", share.page_floor().count()}});
      if (!done) throw std::runtime_error(done.error().message);
    }
  }
};

}  // namespace

const std::vector<std::string>& fleet_names() {
  static const std::vector<std::string> names{"none", "balloon-only", "balloon-then-page",
                                              "virtio-balloon"};
  return names;
}

std::unique_ptr<Fleet> make_fleet(const std::string& mode) {
  if (mode == "none") return std::make_unique<Fleet>();
  if (mode == "virtio-balloon") return std::make_unique<VirtioByHand>();
  return std::make_unique<DaemonFleet>(mode);
}

}  // namespace fileballoon::bench
