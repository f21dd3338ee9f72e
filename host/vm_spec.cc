#include "host/vm_spec.h"

#include <fmt/format.h>

#include <algorithm>

namespace fileballoon::host {

Result<void> check_vm_name(std::string_view name) {
  const bool good_letters = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
  if (name.empty() || name.size() > kMaxVmName || !good_letters || name.front() == '-' ||
      name.front() == '.') {
    return Error{fmt::format(
        "bad VM name '{}': write 1 to {} letters, digits, '.', '_' or '-', not starting with '.' "
        "or '-'",
        name.substr(0, kMaxVmName), kMaxVmName)};
  }
  return {};
}

Result<void> check_band(std::int64_t band) {
  if (band < 0 || band > kMaxBand) {
    return Error{fmt::format("bad band {}: bands go from 0 (highest) to {}", band, kMaxBand)};
  }
  return {};
}

Result<void> check_weight(std::int64_t weight) {
  if (weight < 0 || weight > static_cast<std::int64_t>(kMaxWeight)) {
    return Error{fmt::format("bad weight {}: weights go from 0 to {}", weight, kMaxWeight)};
  }
  return {};
}

}  // namespace fileballoon::host
