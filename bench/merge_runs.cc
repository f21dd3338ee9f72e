#include "bench/merge_runs.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace fileballoon::bench {
namespace json = boost::json;
namespace {

std::string text_or_empty(const Row& row, std::string_view key) {
  const auto* value = row.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : std::string();
}

bool same_group(const Row& a, const Row& b) {
  return text_or_empty(a, "mode") == text_or_empty(b, "mode") &&
         text_or_empty(a, "memory") == text_or_empty(b, "memory");
}

json::value merge_field(std::string_view key, const std::vector<const Row*>& group) {
  std::vector<json::value> values;
  for (const Row* row : group) {
    const auto* value = row->if_contains(key);
    if (value != nullptr && !value->is_null()) values.push_back(*value);
  }
  if (values.empty()) return nullptr;
  if (!values.front().is_number()) return values.front();
  std::sort(values.begin(), values.end(), [](const json::value& a, const json::value& b) {
    return a.to_number<double>() < b.to_number<double>();
  });
  // One lost page in one of many runs is the result; a median would hide it.
  if (key == "oom_kills" || key == "pattern_errors") return values.back();
  const std::size_t middle = values.size() / 2;
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle - 1].to_number<double>() + values[middle].to_number<double>()) / 2;
}

}  // namespace

std::vector<Row> merge_runs(const std::vector<Row>& rows) {
  std::vector<Row> merged;
  for (const Row& first : rows) {
    const bool known = std::any_of(merged.begin(), merged.end(),
                                   [&](const Row& row) { return same_group(row, first); });
    if (known) continue;
    std::vector<const Row*> group;
    for (const Row& row : rows) {
      if (same_group(row, first)) group.push_back(&row);
    }
    Row out;
    for (const auto& field : first) {
      if (field.value().is_structured()) continue;
      out[field.key()] = merge_field(field.key(), group);
    }
    out.erase("run");
    out["runs"] = group.size();
    merged.push_back(std::move(out));
  }
  return merged;
}

}  // namespace fileballoon::bench
