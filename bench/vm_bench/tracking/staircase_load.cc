#include "bench/vm_bench/tracking/staircase_load.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "tests/vm/guest/staircase.h"

namespace fileballoon::bench {
namespace {

constexpr const char* kName = "work";

}  // namespace

std::unique_ptr<StaircaseDisk> StaircaseLoad::make_disk(const std::vector<Step>& steps) {
  std::uint64_t largest = 0;
  Bytes once;
  for (const Step& step : steps) {
    largest = std::max(largest, step.mib);
    once += Bytes(step.passes * guest::kOncePerPass);
  }
  return std::make_unique<StaircaseDisk>(Bytes::mib((largest + 1) / 2), once);
}

StaircaseLoad::StaircaseLoad(vmkit::Vm& vm, std::uint64_t largest_mib) : vm_(vm) {
  vm_.guest().call("staircase", {{"name", kName},
                                 {"hot", "/mnt/disk/hot"},
                                 {"once", "/mnt/disk/once"},
                                 {"largest", Bytes::mib(largest_mib).count()}});
}

StaircaseLoad::Result StaircaseLoad::run(const Step& step, Recorder& recorder) {
  const std::size_t first = recorder.series().size();
  const auto ticket = vm_.guest().start(
      "step", {{"name", kName}, {"size", Bytes::mib(step.mib).count()}, {"passes", step.passes}});
  std::optional<vmkit::GuestClient::Object> answer;
  recorder.record(static_cast<double>(step.mib), [&] {
    if (!answer) answer = vm_.guest().take(ticket);
    return !answer;
  });
  std::vector<InUse> points;
  for (const auto& point : answer->at("in_use").as_array()) {
    points.push_back(
        {point.at(0).to_number<double>(), Bytes(point.at(1).to_number<std::uint64_t>()).as_mib()});
  }
  const auto after = static_cast<double>(step.mib);
  for (std::size_t i = first; i < recorder.series().size(); ++i) {
    Sample& sample = recorder.series()[i];
    sample.working_set_mib = working_set_at(sample.in_step_s, now_mib_, after, points);
  }
  now_mib_ = after;
  return {answer->at("seconds").to_number<double>(),
          answer->at("longest_pass_s").to_number<double>(),
          answer->at("errors").to_number<std::uint64_t>(),
          std::move(answer->at("pass_seconds").as_array())};
}

void StaircaseLoad::end() { vm_.guest().drop(kName); }

}  // namespace fileballoon::bench
