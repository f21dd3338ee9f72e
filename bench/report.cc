#include "bench/report.h"

#include <fmt/core.h>
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <ostream>
#include <system_error>

namespace fileballoon::bench {
namespace json = boost::json;
namespace {

json::value text_or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}

std::string print_double(double value) {
  if (!std::isfinite(value)) return "-";
  const double magnitude = std::fabs(value);
  if (magnitude >= 1000) return fmt::format("{:.0f}", value);
  if (magnitude >= 100) return fmt::format("{:.1f}", value);
  if (magnitude >= 1 || magnitude == 0) return fmt::format("{:.2f}", value);
  return fmt::format("{:.3f}", value);
}

std::string print_cell(const json::value* value) {
  if (value == nullptr || value->is_null()) return "-";
  if (value->is_double()) return print_double(value->as_double());
  if (value->is_string()) return std::string(value->as_string());
  return json::serialize(*value);
}

}  // namespace

Machine this_machine() {
  Machine machine;
  utsname names{};
  if (uname(&names) == 0) machine.host_kernel = names.release;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    machine.cpus = static_cast<unsigned>(CPU_COUNT(&set));
  }
  return machine;
}

Report::Report(std::string benchmark, Machine machine)
    : benchmark_(std::move(benchmark)), machine_(std::move(machine)) {}

void Report::set(std::string_view key, json::value value) { extra_[key] = std::move(value); }

json::object Report::to_json() const {
  json::object root;
  root["benchmark"] = benchmark_;
  root["machine"] = {{"accel", text_or_null(machine_.accel)},
                     {"guest_kernel", text_or_null(machine_.guest_kernel)},
                     {"host_kernel", text_or_null(machine_.host_kernel)},
                     {"qemu", text_or_null(machine_.qemu)},
                     {"cpus", machine_.cpus}};
  for (const auto& field : extra_) root[field.key()] = field.value();
  json::array rows;
  for (const Row& row : rows_) {
    json::object out;
    // JSON has no infinities: what could not be measured is null.
    for (const auto& field : row) {
      const bool finite = !field.value().is_double() || std::isfinite(field.value().as_double());
      out[field.key()] = finite ? field.value() : json::value(nullptr);
    }
    rows.emplace_back(std::move(out));
  }
  root["rows"] = std::move(rows);
  return root;
}

void Report::write_json(const std::string& path) const {
  std::ofstream file(path, std::ios::trunc);
  file << json::serialize(to_json()) << '\n';
  file.close();
  if (!file) {
    throw std::system_error(errno, std::generic_category(), "cannot write the report " + path);
  }
}

void Report::print_table(std::ostream& out, const std::vector<std::string>& columns) const {
  std::vector<std::string> names = columns;
  if (names.empty()) {
    for (const Row& row : rows_) {
      for (const auto& field : row) {
        const std::string key(field.key());
        if (std::find(names.begin(), names.end(), key) == names.end()) names.push_back(key);
      }
    }
  }
  std::vector<std::size_t> widths;
  std::vector<bool> is_text;
  for (const std::string& name : names) {
    std::size_t width = name.size();
    bool text = false;
    for (const Row& row : rows_) {
      const json::value* cell = row.if_contains(name);
      width = std::max(width, print_cell(cell).size());
      text = text || (cell != nullptr && cell->is_string());
    }
    widths.push_back(width);
    is_text.push_back(text);
  }
  const auto line = [&](const auto& cell) {
    std::string text;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::string content = cell(i);
      text += is_text[i] ? fmt::format("{:<{}}", content, widths[i])
                         : fmt::format("{:>{}}", content, widths[i]);
      if (i + 1 < names.size()) text += "  ";
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out << text << '\n';
  };
  line([&](std::size_t i) { return names[i]; });
  for (const Row& row : rows_) {
    line([&](std::size_t i) { return print_cell(row.if_contains(names[i])); });
  }
}

}  // namespace fileballoon::bench
