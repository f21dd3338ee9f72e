#include "fileballoon/deflate_mode.h"

#include <array>
#include <string>

namespace fileballoon {

std::string_view to_string(DeflateMode mode) {
  switch (mode) {
    case DeflateMode::silent:
      return "silent";
    case DeflateMode::batched:
      return "batched";
    case DeflateMode::tell_host_first:
      return "tell-host-first";
  }
  return "unknown";
}

Result<DeflateMode> parse_deflate_mode(std::string_view text) {
  constexpr std::array kModes = {DeflateMode::silent, DeflateMode::batched,
                                 DeflateMode::tell_host_first};
  std::string known;
  for (const DeflateMode mode : kModes) {
    if (text == to_string(mode)) {
      return mode;
    }
    known += known.empty() ? "" : ", ";
    known += to_string(mode);
  }
  return Error{"\"" + std::string(text) + "\" is not a deflate mode; use one of: " + known};
}

}  // namespace fileballoon
