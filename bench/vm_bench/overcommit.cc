// Scenario "overcommit": three guests on a host that has two thirds of their memory. Each runs one
// job, a little later than the one before: it grows, works on a small part of its memory, needs all
// of it once more, and ends. For some seconds all three hold more than the host has, most of it
// untouched. Measured: the host's peak (the guests' memory and what the mode itself takes), how
// long each job took, and whether anything was lost.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "bench/vm_bench/fleet.h"
#include "bench/vm_bench/scenario.h"
#include "fileballoon/process_cpu.h"
#include "tests/vm/kit/child_process.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kGuests = 3;
constexpr auto kStagger = std::chrono::seconds(6);
constexpr Bytes kJob = Bytes::mib(700);
constexpr Bytes kHot = Bytes::mib(128);
/// Growth a second: a service that loads its data. A job that grows as fast as it can is over,
/// under TCG, before anybody could say that it was there.
constexpr Bytes kRate = Bytes::mib(64);
/// After the mode has started, before the load.
constexpr auto kSettle = std::chrono::seconds(4);
constexpr auto kJobLimit = std::chrono::seconds(150);
constexpr auto kSample = std::chrono::milliseconds(5);

double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

/// The host's memory taken by guests and helpers, sampled by a thread of its own.
class HostSampler {
 public:
  HostSampler(const Fleet::Vms& vms, const Fleet& fleet, Bytes limit)
      : thread_([this, &vms, &fleet, limit] {
          Bytes helpers;
          for (unsigned n = 0; !stop_; ++n) {
            if (n % 20 == 0) helpers = fleet.helpers();  // read from text files: not so often
            Bytes now = helpers;
            for (const auto& vm : vms) now += vm->footprint().now();
            peak_ = std::max(peak_, now);
            over_s_ += now > limit ? seconds(kSample) : 0;
            helpers_peak_ = std::max(helpers_peak_, helpers);
            std::this_thread::sleep_for(kSample);
          }
        }) {}
  HostSampler(const HostSampler&) = delete;
  HostSampler& operator=(const HostSampler&) = delete;
  ~HostSampler() { stop(); }

  void stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  // After stop().
  [[nodiscard]] Bytes peak() const { return peak_; }
  [[nodiscard]] Bytes helpers_peak() const { return helpers_peak_; }
  [[nodiscard]] double over_s() const { return over_s_; }

 private:
  Bytes peak_;
  Bytes helpers_peak_;
  double over_s_ = 0;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

struct Job {
  vmkit::GuestClient::Ticket ticket;
  bool started = false;
  bool ended = false;
  std::optional<double> seconds;  // nothing: it was killed
  boost::json::object parts;      // of those: to grow, to work on the hot part, to check everything
  std::uint64_t errors = 0;
};

/// Starts the jobs one after the other and waits for all; seconds from the first start.
double run_jobs(Fleet::Vms& vms, std::vector<Job>& jobs, std::uint64_t passes) {
  const auto start = Clock::now();
  for (std::size_t ended = 0; ended < jobs.size();) {
    const auto now = Clock::now();
    if (now - start > kJobLimit) break;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      Job& job = jobs[i];
      if (!job.started && now - start >= kStagger * static_cast<int>(i)) {
        job.started = true;
        job.ticket = vms[i]->guest().start("job", {{"name", "job"},
                                                   {"size", kJob.count()},
                                                   {"hot", kHot.count()},
                                                   {"rate", kRate.count()},
                                                   {"passes", passes},
                                                   {"seed", i + 1}});
      }
      if (!job.started || job.ended) continue;
      try {
        const auto answer = vms[i]->guest().take(job.ticket);
        if (!answer) continue;
        job.seconds = answer->at("seconds").to_number<double>();
        job.errors = answer->at("errors").to_number<std::uint64_t>();
        job.parts = {{"grow_s", answer->at("grow_s")},
                     {"work_s", answer->at("work_s")},
                     {"check_s", answer->at("check_s")}};
      } catch (const std::runtime_error&) {
        if (vms[i]->oom_kills() == 0) throw;
      }
      job.ended = true;
      ++ended;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return seconds(Clock::now() - start);
}

class Overcommit final : public Scenario {
 public:
  std::string name() const override { return "overcommit"; }
  std::string summary() const override {
    return "three guests with staggered jobs on a host of --limit: peak, completion, losses";
  }
  std::vector<std::string> columns() const override {
    return {"mode",           "limit_mib",          "host_peak_mib", "over_limit_s",
            "completion_s",   "completion_to_none", "guest1_s",      "guest2_s",
            "guest3_s",       "guests_cpu_s",       "helpers_cpu_s", "oom_kills",
            "pattern_errors", "paged_out_mib",      "paged_in_mib",  "page_in_faults"};
  }
  std::vector<std::string> modes() const override { return fleet_names(); }
  Row measure(const std::string& mode, const std::string& variant,
              const Settings& settings) override;
  void relate(std::vector<Row>& rows) const override;
};

Row Overcommit::measure(const std::string& mode, const std::string& /*variant*/,
                        const Settings& settings) {
  const auto fleet = make_fleet(mode);
  Fleet::Vms vms;
  for (std::size_t i = 0; i < kGuests; ++i) {
    vmkit::VmOptions options;
    options.memory = settings.memory;
    options.cpus = settings.cpus;
    fleet->configure(options);
    vms.push_back(std::make_unique<vmkit::Vm>(options));
  }
  fleet->start(vms, settings.limit);
  std::this_thread::sleep_for(kSettle);

  std::vector<Job> jobs(kGuests);
  const auto guests_cpu_s = [&] {
    double sum = 0;
    for (const auto& vm : vms) sum += cpu_seconds_of(vm->pid());
    return sum;
  };
  const double guests_before = guests_cpu_s();
  const double helpers_before = fleet->helper_cpu_s();
  HostSampler sampler(vms, *fleet, settings.limit);
  const double completion = run_jobs(vms, jobs, settings.passes);
  sampler.stop();

  Row row{{"mode", mode}, {"limit_mib", settings.limit.as_mib()}};
  row["host_peak_mib"] = sampler.peak().as_mib();
  row["over_limit_s"] = sampler.over_s();
  row["helpers_peak_mib"] = sampler.helpers_peak().as_mib();
  const bool all = std::all_of(jobs.begin(), jobs.end(), [](const Job& j) { return j.seconds; });
  row["completion_s"] = all ? boost::json::value(completion) : boost::json::value(nullptr);
  row["completion_to_none"] = nullptr;
  std::uint64_t kills = 0;
  std::uint64_t errors = 0;
  for (std::size_t i = 0; i < kGuests; ++i) {
    kills += vms[i]->oom_kills();
    errors += jobs[i].errors;
    row["guest" + std::to_string(i + 1) + "_s"] =
        jobs[i].seconds ? boost::json::value(*jobs[i].seconds) : boost::json::value(nullptr);
    for (const auto& [part, spent] : jobs[i].parts) {
      row["guest" + std::to_string(i + 1) + "_" + std::string(part)] = spent;
    }
  }
  row["oom_kills"] = kills;
  row["pattern_errors"] = errors;
  row["guests_cpu_s"] = guests_cpu_s() - guests_before;
  row["helpers_cpu_s"] = fleet->helper_cpu_s() - helpers_before;
  const Fleet::Paging paging = fleet->paging();
  row["paged_out_mib"] = paging.out.as_mib();
  row["paged_in_mib"] = paging.in.as_mib();
  row["page_in_faults"] = paging.in_faults;
  row["held_faults"] = paging.held_faults;
  return row;
}

void Overcommit::relate(std::vector<Row>& rows) const {
  for (const Row& none : rows) {
    if (none.at("mode") != "none" || !none.at("completion_s").is_double()) continue;
    for (Row& row : rows) {
      if (row.at("completion_s").is_double()) {
        row["completion_to_none"] =
            row.at("completion_s").as_double() / none.at("completion_s").as_double();
      }
    }
  }
}

}  // namespace

Scenario& overcommit_scenario() {
  static Overcommit scenario;
  return scenario;
}

}  // namespace fileballoon::bench
