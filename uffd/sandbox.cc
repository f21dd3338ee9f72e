#include "uffd/sandbox.h"

#include <linux/seccomp.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace fileballoon {

Result<Sandbox> Sandbox::of(const Process& process, const Tracee& tracee,
                            std::uint64_t instruction) {
  std::ifstream status("/proc/" + std::to_string(process.pid) + "/task/" +
                       std::to_string(tracee.tid()) + "/status");
  int mode = SECCOMP_MODE_DISABLED;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Seccomp:")) {
      mode = std::atoi(line.c_str() + 8);
    }
  }
  Sandbox sandbox;
  sandbox.instruction_ = instruction;
  sandbox.strict_ = mode == SECCOMP_MODE_STRICT;
  if (mode == SECCOMP_MODE_FILTER) {
    auto filters = read_filters(tracee.tid());
    if (filters.has_error()) {
      return Error{process.label() + " has a seccomp filter, and " + filters.error().message +
                   ": it may kill the process for userfaultfd(2), so it is left alone"};
    }
    sandbox.filters_ = std::move(*filters);
  }
  return sandbox;
}

bool Sandbox::allows(int number, const std::array<std::uint64_t, 6>& arguments) const {
  return !strict_ && std::all_of(filters_.begin(), filters_.end(), [&](const auto& filter) {
    return fileballoon::allows(run_filter(filter, number, arguments, instruction_));
  });
}

}  // namespace fileballoon
