#include "bench/results_file.h"

#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace fileballoon::bench {
namespace json = boost::json;
namespace {

std::string text_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : std::string();
}

void must_agree(const std::string& path, const char* what, const std::string& first,
                const std::string& here) {
  if (first == here) return;
  throw std::runtime_error(path + ": its " + what + " is \"" + here +
                           "\", that of the first file \"" + first +
                           "\"; such results cannot be merged");
}

}  // namespace

ResultsFile read_results(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  ResultsFile results;
  try {
    const json::object object = json::parse(text).as_object();
    const json::object& machine = object.at("machine").as_object();
    results.benchmark = text_of(object, "benchmark");
    results.scenario = text_of(object, "scenario");
    results.machine = {text_of(machine, "accel"), text_of(machine, "guest_kernel"),
                       text_of(machine, "host_kernel"), text_of(machine, "qemu"),
                       machine.at("cpus").to_number<unsigned>()};
    for (const json::value& sample : object.at("samples").as_array()) {
      results.samples.push_back(sample.as_object());
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(path +
                             " is not a result file of a benchmark (--json): " + error.what());
  }
  return results;
}

ResultsFile read_all_results(const std::vector<std::string>& paths) {
  ResultsFile all;
  for (const std::string& path : paths) {
    ResultsFile one = read_results(path);
    if (all.samples.empty()) {
      all = std::move(one);
      continue;
    }
    must_agree(path, "benchmark", all.benchmark, one.benchmark);
    must_agree(path, "scenario", all.scenario, one.scenario);
    must_agree(path, "accelerator", all.machine.accel, one.machine.accel);
    must_agree(path, "guest kernel", all.machine.guest_kernel, one.machine.guest_kernel);
    must_agree(path, "host kernel", all.machine.host_kernel, one.machine.host_kernel);
    must_agree(path, "QEMU", all.machine.qemu, one.machine.qemu);
    for (Row& row : one.samples) all.samples.push_back(std::move(row));
  }
  return all;
}

}  // namespace fileballoon::bench
