// discard_rate: how fast memory that is all zero is verified and given back, in ranges of 1 to
// 4,096 pages, with and without write-protection, by every method that applies. Each row discards
// the whole area once per round and refills it outside the clock.
#include <fcntl.h>
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <iostream>

#include "bench/median.h"
#include "bench/report.h"
#include "tests/integration/uffd_own_memory.h"

namespace fileballoon::bench {
namespace {

using testing::MemoryKind;
using testing::OwnMemory;
using Clock = std::chrono::steady_clock;

enum class Method { punch_hole, remove, dont_need, free };

const char* name(Method method) {
  switch (method) {
    case Method::punch_hole:
      return "PUNCH_HOLE";
    case Method::remove:
      return "MADV_REMOVE";
    case Method::dont_need:
      return "MADV_DONTNEED";
    case Method::free:
      return "MADV_FREE";
  }
  return "?";
}

struct Case {
  Method method = Method::punch_hole;
  std::uint64_t pages_per_range = 256;
  bool write_protect = true;
  bool verify = true;
};

// The bare call, for the rows without verification.
void discard_bare(OwnMemory& memory, const Case& c, HostRange range) {
  std::byte* at = memory.base() + range.start.bytes();
  switch (c.method) {
    case Method::punch_hole:
      (void)::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(range.start.bytes()),
                        static_cast<off_t>(range.size.count()));
      break;
    case Method::remove:
      (void)::madvise(at, range.size.count(), MADV_REMOVE);
      break;
    case Method::dont_need:
      (void)::madvise(at, range.size.count(), MADV_DONTNEED);
      break;
    case Method::free:
      (void)::madvise(at, range.size.count(), MADV_FREE);
      break;
  }
}

struct Measured {
  double gib_per_s = 0;
  double refill_gib_per_s = 0;  ///< writing to all pages again, faults included
};

Measured measure(const Case& c, Bytes size, unsigned rounds) {
  OwnMemory::Options options;
  const bool shared = c.method == Method::punch_hole || c.method == Method::remove;
  options.kind = shared ? MemoryKind::memfd : MemoryKind::anonymous;
  options.size = size;
  options.lazy = c.method == Method::free;
  options.watch.mode = RefaultMode::kernel;
  OwnMemory memory(options);
  FaultEngine engine(memory.ram(), {});
  GuardedDiscarder::Options discard_options;
  discard_options.arm = c.write_protect;
  GuardedDiscarder discarder(memory.ram(), discard_options);
  std::vector<double> rates;
  std::vector<double> refills;
  for (unsigned round = 0; round <= rounds; ++round) {
    const auto refill = Clock::now();
    std::memset(memory.base(), 0, size.count());
    const double refill_s = std::chrono::duration<double>(Clock::now() - refill).count();
    const auto begin = Clock::now();
    for (std::uint64_t first = 0; first < memory.pages(); first += c.pages_per_range) {
      const HostRange range = memory.range(first, c.pages_per_range);
      if (c.verify) {
        (void)discarder.discard(0, range);
      } else {
        discard_bare(memory, c, range);
      }
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (round > 0) {
      const double gib = static_cast<double>(size.count()) / static_cast<double>(1U << 30);
      rates.push_back(gib / seconds);
      refills.push_back(gib / refill_s);
    }
  }
  return {median(rates), median(refills)};
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  using namespace fileballoon::bench;
  std::string json;
  unsigned mib = 128;
  unsigned rounds = 5;
  std::vector<std::uint64_t> sizes = {1, 16, 256, 4096};
  CLI::App app("Rate of verified discards");
  app.add_option("--json", json, "write one JSON object to FILE");
  app.add_option("--mib", mib, "memory per round, MiB");
  app.add_option("--rounds", rounds, "measured rounds, after one of warm-up");
  app.add_option("--pages", sizes, "pages of a range, one or several sizes")
      ->check(CLI::Range(1U, 1U << 20));
  CLI11_PARSE(app, argc, argv);

  Report report("discard_rate");
  for (const Method method :
       {Method::punch_hole, Method::remove, Method::dont_need, Method::free}) {
    for (const std::uint64_t pages : sizes) {
      for (const auto& [write_protect, verify] :
           {std::pair{true, true}, std::pair{false, true}, std::pair{false, false}}) {
        if (method == Method::remove && verify) {
          continue;  // the discarder punches, which costs the same and works from outside
        }
        const Measured measured =
            measure({method, pages, write_protect, verify}, Bytes::mib(mib), rounds);
        Row row;
        row["method"] = name(method);
        row["pages_per_range"] = pages;
        row["write_protect"] = write_protect;
        row["verify"] = verify;
        row["gib_per_s"] = measured.gib_per_s;
        row["refill_gib_per_s"] = measured.refill_gib_per_s;
        report.add(std::move(row));
      }
    }
  }
  report.print_table(std::cout);
  if (!json.empty()) {
    report.write_json(json);
  }
}
