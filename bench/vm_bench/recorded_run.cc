#include "bench/vm_bench/recorded_run.h"

#include "bench/vm_bench/series_statistics.h"

namespace fileballoon::bench {

std::vector<std::string> RecordedRun::modes() {
  return {"none",
          "virtio-balloon",
          "virtio-balloon-stats",
          "free-page-reporting",
          "free-page-reporting-drop-caches",
          "fileballoon-off",
          "fileballoon-unmapped-first",
          "fileballoon-proactive",
          "fileballoon-epoch",
          "fileballoon-uffd"};
}

RecordedRun::RecordedRun(const std::string& mode, const Settings& settings, const std::string& disk,
                         const std::string& mount, Bytes fixed_target)
    : stage_(boot_for(mode, settings, disk)), recorder_(*stage_.vm, *stage_.mode) {
  vm().guest().shell(mount);
  if (stage_.mode->takes_target()) {
    stage_.mode->request(stage_.mode->yields_by_reclaim() ? settings.memory : fixed_target);
  }
  recorder_.record_for(0, kIdle);
}

void RecordedRun::begin() {
  oom_kills_ = vm().oom_kills();
  cpu_.emplace(vm(), *stage_.mode);
  before_ = GuestCost::now(vm());
}

void RecordedRun::end() {
  cost_ = GuestCost::now(vm()) - before_;
  used_ = cpu_->read();
}

void RecordedRun::describe(Row& row) {
  row["gib_s"] = area_gib_s(recorder_.series());
  row["idle_mib"] = idle_footprint(recorder_.series(), kIdleMeasured);
  row["disk_read_mib"] = cost_.disk_read_mib;
  row["guest_cpu_s"] = cost_.cpu_s;
  row["agent_cpu_s"] = used_.agent_s;
  row["host_cpu_s"] = used_.host_s();
  row["oom_kills"] = vm().oom_kills() - oom_kills_;
  row["yielded_pages"] = stage_.mode->yielded_pages();
  row["series"] = to_json(recorder_.series());
}

}  // namespace fileballoon::bench
