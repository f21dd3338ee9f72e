#include "fileballoon/limits.h"

namespace fileballoon {

Result<Limits> make_limits(Bytes target, Bytes floor, Bytes ram) {
  if (target > ram) {
    return Error{"target " + to_string(target) + " is above the guest's RAM of " + to_string(ram) +
                 "; choose a target of at most that"};
  }
  if (floor > target) {
    return Error{"floor " + to_string(floor) + " is above the target " + to_string(target) +
                 "; raise the target first or lower the floor"};
  }
  return Limits{target.page_floor(), floor.page_floor()};
}

}  // namespace fileballoon
