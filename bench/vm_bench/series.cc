#include "bench/vm_bench/series.h"

#include <boost/json/array.hpp>
#include <cmath>

namespace fileballoon::bench {
namespace json = boost::json;
namespace {

double hundredths(double value) { return std::round(value * 100) / 100; }

}  // namespace

json::object to_json(const Series& series) {
  json::array time;
  json::array set;
  json::array footprint;
  json::array in_step;
  json::array step;
  for (const Sample& sample : series) {
    time.emplace_back(hundredths(sample.time_s));
    set.emplace_back(hundredths(sample.working_set_mib));
    footprint.emplace_back(hundredths(sample.footprint_mib));
    in_step.emplace_back(hundredths(sample.in_step_s));
    step.emplace_back(sample.step);
  }
  return {{"time_s", std::move(time)},
          {"working_set_mib", std::move(set)},
          {"footprint_mib", std::move(footprint)},
          {"in_step_s", std::move(in_step)},
          {"step", std::move(step)}};
}

Series series_from_json(const json::object& columns) {
  const json::array& time = columns.at("time_s").as_array();
  const auto number = [&](const char* column, std::size_t at) {
    return columns.at(column).as_array().at(at).to_number<double>();
  };
  Series series;
  for (std::size_t i = 0; i < time.size(); ++i) {
    series.push_back({time[i].to_number<double>(), number("working_set_mib", i),
                      number("footprint_mib", i), number("in_step_s", i),
                      static_cast<std::size_t>(number("step", i))});
  }
  return series;
}

}  // namespace fileballoon::bench
