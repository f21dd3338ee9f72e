#include "host/mtree.h"

#include <charconv>
#include <optional>

namespace fileballoon::host {
namespace {

/// Takes sixteen hexadecimal digits (QEMU pads addresses) or fewer from the front of `text`.
std::optional<std::uint64_t> take_hex(std::string_view& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc{}) {
    return std::nullopt;
  }
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) {
    return false;
  }
  text.remove_prefix(prefix.size());
  return true;
}

/// "0000000000100000-000000007fffffff (prio 0, ram): ram0 @0000000000100000 KVM"
std::optional<MtreeRange> parse_line(std::string_view line) {
  MtreeRange range;
  const auto first = take_hex(line);
  if (!first || !take(line, "-")) {
    return std::nullopt;
  }
  const auto last = take_hex(line);
  if (!last || *last < *first || !take(line, " (prio ")) {
    return std::nullopt;
  }
  range.first = *first;
  range.last = *last;
  const auto comma = line.find(", ");
  if (comma == std::string_view::npos) {
    return std::nullopt;
  }
  line.remove_prefix(comma + 2);
  const auto close = line.find("): ");
  if (close == std::string_view::npos) {
    return std::nullopt;
  }
  range.kind = line.substr(0, close);
  line.remove_prefix(close + 3);
  // Accelerators append their name (" KVM") to ranges that they map.
  constexpr std::string_view kKvm = " KVM";
  if (line.ends_with(kKvm)) {
    line.remove_suffix(kKvm.size());
  }
  const auto at = line.rfind(" @");
  if (at != std::string_view::npos) {
    std::string_view digits = line.substr(at + 2);
    const auto offset = take_hex(digits);
    if (!offset) {
      return std::nullopt;
    }
    range.offset = *offset;
    line = line.substr(0, at);
  }
  range.name = line;
  return range;
}

}  // namespace

Result<std::vector<MtreeRange>> parse_mtree(std::string_view text, std::string_view address_space) {
  const std::string wanted = "AS \"" + std::string(address_space) + "\"";
  std::vector<MtreeRange> ranges;
  bool in_view = false;
  bool found = false;
  while (!text.empty()) {
    const auto newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) {
      line.remove_suffix(1);
    }
    const auto indent = line.find_first_not_of(' ');
    if (indent == std::string_view::npos) {
      continue;
    }
    line.remove_prefix(indent);
    if (line.starts_with("FlatView #")) {
      if (found) {
        return ranges;
      }
      in_view = false;
    } else if (line.starts_with("AS \"")) {
      in_view = in_view || line.starts_with(wanted);
      found = found || in_view;
    } else if (in_view && line.find(" (prio ") != std::string_view::npos) {
      std::optional<MtreeRange> range = parse_line(line);
      if (!range) {
        return Error{"cannot read this line of QEMU's 'info mtree -f': " + std::string(line)};
      }
      ranges.push_back(std::move(*range));
    }
  }
  if (!found) {
    return Error{"QEMU's 'info mtree -f' shows no address space \"" + std::string(address_space) +
                 "\""};
  }
  return ranges;
}

}  // namespace fileballoon::host
