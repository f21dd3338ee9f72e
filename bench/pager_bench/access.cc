// bench/pager_access: what each way of seeing which pages are in use costs and sees. Half of the
// memory is touched between two looks, a quarter by reading and a quarter by writing.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>

#include "bench/report.h"
#include "tests/integration/uffd_own_memory.h"
#include "uffd/pager/access_tracker.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;

double ns_per(Clock::time_point start, std::uint64_t count) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() /
         static_cast<double>(count);
}

Row measure(AccessMethod method, Bytes size, unsigned rounds) {
  testing::OwnMemoryOptions options;
  options.size = size;
  testing::OwnMemory memory(options);
  const FaultEngine engine(memory.ram(), {}, nullptr);
  AgeMap ages(memory.pages());
  auto tracker = AccessTracker::create(memory.ram(), ::getpid(), {&ages}, method).value();
  (void)tracker.look();
  double look = 0;
  double read = 0;
  double write = 0;
  std::uint64_t reads_seen = 0;
  std::uint64_t writes_seen = 0;
  std::uint64_t false_hits = 0;
  const std::uint64_t quarter = memory.pages() / 4;
  for (unsigned round = 0; round < rounds; ++round) {
    auto start = Clock::now();
    for (std::uint64_t page = 0; page < memory.pages(); page += 4) {
      (void)*reinterpret_cast<volatile std::uint64_t*>(memory.page(page));
    }
    read += ns_per(start, quarter);
    start = Clock::now();
    for (std::uint64_t page = 2; page < memory.pages(); page += 4) {
      *reinterpret_cast<volatile std::uint64_t*>(memory.page(page)) = round;
    }
    write += ns_per(start, quarter);
    start = Clock::now();
    (void)tracker.look();
    look += ns_per(start, memory.pages());
    for (std::uint64_t page = 0; page < memory.pages(); ++page) {
      const bool young = ages.age(page) == 0;
      reads_seen += young && page % 4 == 0 ? 1 : 0;
      writes_seen += young && page % 4 == 2 ? 1 : 0;
      false_hits += young && page % 2 == 1 ? 1 : 0;
    }
  }
  const double touched = static_cast<double>(quarter) * rounds;
  Row row;
  row["method"] = std::string(to_string(method)).c_str();
  row["look_ns_per_page"] = look / rounds;
  row["guest_read_ns"] = read / rounds;
  row["guest_write_ns"] = write / rounds;
  row["reads_seen"] = static_cast<double>(reads_seen) / touched;
  row["writes_seen"] = static_cast<double>(writes_seen) / touched;
  row["false_hits"] = static_cast<double>(false_hits) / (2 * touched);
  return row;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  std::string json;
  unsigned mib = 256;
  unsigned rounds = 5;
  CLI::App app("Cost and sight of the ways to see which pages are in use");
  app.add_option("--json", json, "write the rows to this file");
  app.add_option("--mib", mib, "memory looked at")->capture_default_str();
  app.add_option("--rounds", rounds, "looks")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    bench::Report report("pager_access");
    report.add(bench::measure(AccessMethod::unmap, Bytes::mib(mib), rounds));
    report.add(bench::measure(AccessMethod::write_protect, Bytes::mib(mib), rounds));
    report.print_table(std::cout);
    if (!json.empty()) {
      report.write_json(json);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pager_access: %s\n", error.what());
    return 1;
  }
  return 0;
}
