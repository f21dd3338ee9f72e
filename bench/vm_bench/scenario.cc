#include "bench/vm_bench/scenario.h"

#include <algorithm>

namespace fileballoon::bench {

const std::vector<Scenario*>& scenarios() {
  static const std::vector<Scenario*> all{
      &inflate_scenario(),      &pressure_scenario(), &tracking_scenario(),  &build_scenario(),
      &interference_scenario(), &rest_scenario(),     &overcommit_scenario()};
  return all;
}

void relate_to_none(std::vector<Row>& rows, std::string_view field, std::string_view ratio) {
  const auto none = std::find_if(rows.begin(), rows.end(),
                                 [](const Row& row) { return row.at("mode") == "none"; });
  if (none == rows.end()) return;
  const double base = none->at(field).to_number<double>();
  for (Row& row : rows) row[ratio] = row.at(field).to_number<double>() / base;
}

}  // namespace fileballoon::bench
