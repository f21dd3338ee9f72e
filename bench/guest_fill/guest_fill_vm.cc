// guest_fill_vm: runs guest_fill in a stock guest and shows what it prints as a table and as JSON.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include "bench/report.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::bench {
namespace {

/// A line of `name=value` words as a row; a value that is a number becomes one.
Row parse_line(const std::string& line) {
  Row row;
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const auto equals = word.find('=');
    if (equals == std::string::npos) {
      throw std::runtime_error("guest_fill printed: " + line);
    }
    const std::string value = word.substr(equals + 1);
    char* end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    if (*end == '\0' && !value.empty()) {
      row[word.substr(0, equals)] = number;
    } else {
      row[word.substr(0, equals)] = value;
    }
  }
  return row;
}

Report measure(unsigned mib, const std::string& variant) {
  vmkit::VmOptions options;
  options.initramfs.files = {{"/bin/guest_fill", FILEBALLOON_GUEST_FILL, true}};
  options.extra_cmdline = "nokaslr";  // so that a profiler outside can name addresses
  vmkit::Vm vm(options);
  vm.guest().touch_and_free(Bytes::mib(700));
  const std::string printed =
      vm.guest().shell("/bin/guest_fill " + std::to_string(mib) + " " + variant + " 2>&1",
                       std::chrono::seconds(300));
  Report report("guest_fill");
  report.machine().accel = vmkit::accelerator().name;
  report.machine().qemu = vmkit::qemu_version();
  report.machine().guest_kernel = vmkit::find_guest_kernel().release;
  report.set("mib", mib);
  std::istringstream lines(printed);
  for (std::string line; std::getline(lines, line);) {
    report.add(parse_line(line));
  }
  if (report.rows().empty()) {
    throw std::runtime_error("no variant is called '" + variant + "'");
  }
  return report;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  CLI::App app("Cost of each step of inflating, nanoseconds per page, in a stock guest.");
  unsigned mib = 256;
  std::string variant;
  std::string json;
  app.add_option("--mib", mib, "how much each variant fills")
      ->check(CLI::Range(2, 512))
      ->capture_default_str();
  app.add_option("--variant", variant, "only this one");
  app.add_option("--json", json, "write the result as one JSON object to this file");
  CLI11_PARSE(app, argc, argv);
  if (const auto reason = vmkit::why_no_guest()) {
    std::cerr << "guest_fill_vm: " << *reason << '\n';
    return 1;
  }
  try {
    const bench::Report report = bench::measure(mib, variant);
    std::cout << "accelerator: " << vmkit::accelerator().name << '\n';
    report.print_table(std::cout);
    if (!json.empty()) {
      report.write_json(json);
    }
  } catch (const std::exception& error) {
    std::cerr << "guest_fill_vm: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
