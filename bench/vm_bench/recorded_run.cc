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
  pgpgin_ = vm().guest().vmstat("pgpgin");
  oom_kills_ = vm().oom_kills();
  cpu_.emplace(vm(), *stage_.mode);
}

void RecordedRun::end() {
  used_ = cpu_->read();
  const std::uint64_t kib = vm().guest().vmstat("pgpgin") - pgpgin_;
  disk_read_mib_ = static_cast<double>(kib) / 1024;
}

void RecordedRun::describe(Row& row) {
  row["gib_s"] = area_gib_s(recorder_.series());
  row["idle_mib"] = idle_footprint(recorder_.series(), kIdleMeasured);
  row["disk_read_mib"] = disk_read_mib_;
  row["guest_cpu_s"] = used_.guest_s;
  row["agent_cpu_s"] = used_.agent_s;
  row["host_cpu_s"] = used_.host_s();
  row["oom_kills"] = vm().oom_kills() - oom_kills_;
  row["yielded_pages"] = stage_.mode->yielded_pages();
  row["series"] = to_json(recorder_.series());
}

}  // namespace fileballoon::bench
