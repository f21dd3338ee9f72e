// Sandbox: what the seccomp filters of a stopped thread would do to the system calls that it is
// about to be made to execute. Asked before each of them, since a filter may kill the process for
// one. Built and used by hot attach.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "uffd/seccomp_filter.h"
#include "uffd/tracee.h"

namespace fileballoon {

class Sandbox {
 public:
  /// Reads the filters of `tracee`, whose calls will be issued from `instruction`. Where they
  /// cannot be read the process is best left alone, and the error says so.
  [[nodiscard]] static Result<Sandbox> of(const Process& process, const Tracee& tracee,
                                          std::uint64_t instruction);

  [[nodiscard]] bool allows(int number, const std::array<std::uint64_t, 6>& arguments) const;

 private:
  std::uint64_t instruction_ = 0;
  bool strict_ = false;
  std::vector<std::vector<sock_filter>> filters_;
};

}  // namespace fileballoon
