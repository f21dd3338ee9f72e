#include "fileballoon/bytes.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace fileballoon {
namespace {

constexpr std::string_view kForms =
    "a number of bytes, or one with a suffix K, M, G or T (binary), or a percentage of RAM";

Error bad_size(std::string_view text, std::string_view why) {
  return Error{"bad size '" + std::string(text) + "': " + std::string(why) + "; write " +
               std::string(kForms)};
}

/// Binary power for a suffix, or nothing where the suffix is unknown.
std::optional<int> shift_of(std::string suffix) {
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (suffix.empty() || suffix == "b") {
    return 0;
  }
  constexpr std::string_view kUnits = "kmgt";
  const auto unit = kUnits.find(suffix.front());
  if (unit == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view rest = std::string_view(suffix).substr(1);
  if (!rest.empty() && rest != "b" && rest != "ib") {
    return std::nullopt;
  }
  return 10 * (static_cast<int>(unit) + 1);
}

}  // namespace

Result<Bytes> parse_size(std::string_view text, std::optional<Bytes> whole) {
  std::string_view trimmed = text;
  while (!trimmed.empty() && std::isspace(static_cast<unsigned char>(trimmed.front())) != 0) {
    trimmed.remove_prefix(1);
  }
  while (!trimmed.empty() && std::isspace(static_cast<unsigned char>(trimmed.back())) != 0) {
    trimmed.remove_suffix(1);
  }
  if (trimmed.empty()) {
    return bad_size(text, "it is empty");
  }
  // Digits with at most one point, by hand: from_chars for double also takes "inf" and "1e9".
  const auto digits_end = trimmed.find_first_not_of("0123456789.");
  const std::string_view digits = trimmed.substr(0, digits_end);
  std::string suffix(digits_end == std::string_view::npos ? "" : trimmed.substr(digits_end));
  suffix.erase(0, suffix.find_first_not_of(' '));
  if (digits.empty() || digits.find_first_of("0123456789") == std::string_view::npos ||
      std::count(digits.begin(), digits.end(), '.') > 1) {
    return bad_size(text, "it does not start with a number");
  }

  if (suffix == "%") {
    if (!whole) {
      return bad_size(text, "a percentage has no meaning here");
    }
    double percent = 0;
    // Out of range leaves the value as it was: a number with hundreds of digits is not 0 %.
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), percent);
    if (parsed.ec != std::errc{} || percent > 100) {
      return bad_size(text, "it is more than 100 %");
    }
    if (percent == 100) {
      return whole->page_floor();  // exact, where a double is not
    }
    return Bytes(static_cast<std::uint64_t>(static_cast<double>(whole->count()) * percent / 100))
        .page_floor();
  }

  const std::optional<int> shift = shift_of(suffix);
  if (!shift) {
    return bad_size(text, "unknown suffix '" + suffix + "'");
  }
  if (digits.find('.') == std::string_view::npos) {
    std::uint64_t value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (parsed.ec != std::errc{} || value > (std::numeric_limits<std::uint64_t>::max() >> *shift)) {
      return bad_size(text, "it is larger than any memory");
    }
    return Bytes(value << *shift);
  }
  double value = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const double scaled = std::ldexp(value, *shift);
  if (parsed.ec != std::errc{} || !(scaled < 0x1p64)) {
    return bad_size(text, "it is larger than any memory");
  }
  return Bytes(static_cast<std::uint64_t>(scaled));
}

std::string to_string(Bytes bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes.count());
  std::size_t unit = 0;
  // Rounded before it is compared: one byte less than 1 GiB reads "1 GiB", not "1024 MiB".
  const auto rounded_to_tenths = [](double v) { return std::round(v * 10) / 10; };
  while (rounded_to_tenths(value) >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  const double rounded = rounded_to_tenths(value);
  const bool whole = rounded == std::floor(rounded);
  std::snprintf(text.data(), text.size(), whole ? "%.0f %s" : "%.1f %s", rounded, kUnits.at(unit));
  return text.data();
}

}  // namespace fileballoon
