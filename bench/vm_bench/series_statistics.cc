#include "bench/vm_bench/series_statistics.h"

#include <algorithm>

namespace fileballoon::bench {

double idle_footprint(const Series& series, double window_s) {
  double end = 0;
  for (const Sample& sample : series) {
    if (sample.step == 0) end = sample.time_s;
  }
  double sum = 0;
  double count = 0;
  for (const Sample& sample : series) {
    if (sample.step != 0 || sample.time_s < end - window_s) continue;
    sum += sample.footprint_mib;
    count += 1;
  }
  return count > 0 ? sum / count : 0;
}

Line fit(const Series& series, double after_s) {
  double n = 0;
  double sx = 0;
  double sy = 0;
  for (const Sample& sample : series) {
    if (sample.in_step_s < after_s) continue;
    n += 1;
    sx += sample.working_set_mib;
    sy += sample.footprint_mib;
  }
  double sxx = 0;
  double syy = 0;
  double sxy = 0;
  for (const Sample& sample : series) {
    if (sample.in_step_s < after_s) continue;
    const double x = sample.working_set_mib - sx / n;
    const double y = sample.footprint_mib - sy / n;
    sxx += x * x;
    syy += y * y;
    sxy += x * y;
  }
  if (sxx <= 0 || syy <= 0) return {};
  return {sxy / sxx, sxy * sxy / (sxx * syy)};
}

double mean_excess(const Series& series, double idle_mib) {
  double sum = 0;
  double count = 0;
  for (const Sample& sample : series) {
    if (sample.step == 0) continue;
    sum += std::max(0.0, sample.footprint_mib - idle_mib - sample.working_set_mib);
    count += 1;
  }
  return count > 0 ? sum / count : 0;
}

double area_gib_s(const Series& series) {
  double area = 0;
  for (std::size_t i = 1; i < series.size(); ++i) {
    if (series[i].step == 0) continue;
    area += series[i].footprint_mib / 1024 * (series[i].time_s - series[i - 1].time_s);
  }
  return area;
}

double peak_footprint(const Series& series) {
  double peak = 0;
  for (const Sample& sample : series) {
    if (sample.step > 0) peak = std::max(peak, sample.footprint_mib);
  }
  return peak;
}

std::vector<double> settle_times(const Series& series, double idle_mib, double near_mib) {
  std::vector<double> times;
  for (std::size_t i = 1; i < series.size(); ++i) {
    const bool begins = series[i].step != series[i - 1].step;
    if (!begins || series[i].working_set_mib >= series[i - 1].working_set_mib) continue;
    double took = 0;
    for (std::size_t j = i; j < series.size() && series[j].step == series[i].step; ++j) {
      took = series[j].in_step_s;
      if (series[j].footprint_mib - idle_mib - series[j].working_set_mib <= near_mib) break;
    }
    times.push_back(took);
  }
  return times;
}

}  // namespace fileballoon::bench
