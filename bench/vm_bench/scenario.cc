#include "bench/vm_bench/scenario.h"

namespace fileballoon::bench {

const std::vector<Scenario*>& scenarios() {
  static const std::vector<Scenario*> all{&inflate_scenario(), &pressure_scenario(),
                                          &tracking_scenario(), &interference_scenario(),
                                          &overcommit_scenario()};
  return all;
}

}  // namespace fileballoon::bench
