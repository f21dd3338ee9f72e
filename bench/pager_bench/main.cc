// bench/pager: how fast memory is paged out to each store and how long a page-in takes, beside the
// kernel's own swap on the same disk and a plain userfaultfd refault of this project, in one run.
// The memory is this process's own, watched like a VMM's; its content compresses 3:1.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <numeric>

#include "bench/clock.h"
#include "bench/median.h"
#include "bench/pager_bench/kernel_swap.h"
#include "bench/report.h"
#include "tests/integration/uffd_own_memory.h"
#include "tests/unit/store_pages.h"
#include "uffd/pager/page_writer.h"
#include "uffd/pager/tier_store.h"

namespace fileballoon::bench {
namespace {

using MakeStore = std::function<std::unique_ptr<PageStore>()>;

struct Settings {
  std::string json;
  std::string directory;
  std::string size_text = "256M";
  Bytes size;
  unsigned repeat = 3;
  unsigned shards = 2;  // as the keeper has by default
  unsigned threads = 1;
  std::vector<std::string> only;  // stores; empty: all, and the kernel's swap
};

double thread_cpu_seconds() {
  struct timespec now {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::uint64_t percentile(std::vector<std::uint64_t> values, double share) {
  if (values.empty()) {
    return 0;
  }
  const auto at = std::min(values.size() - 1,
                           static_cast<std::size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

void page_out_all(PageWriter& writer, std::uint64_t pages) {
  std::vector<std::uint64_t> batch;
  for (std::uint64_t first = 0; first < pages; first += batch.size()) {
    batch.resize(std::min<std::uint64_t>(PageWriter::kBatch, pages - first));
    std::iota(batch.begin(), batch.end(), first);
    (void)writer.write(0, batch);
  }
  (void)writer.flush();
}

struct Measured {
  PagingResult paging;
  Bytes resident_metadata;  // while nothing is out
  PagerStats paged_out;     // while everything is out
};

/// Where this machine is itself a VM, free memory may have none of its host's behind it (free page
/// reporting), and the first touch of such memory is the host's work, of milliseconds for a huge
/// page. Touches so much of it and frees it again, so that what is measured next finds it as it is
/// on a machine of its own. The kernel reports free memory after two seconds (mm/page_reporting.c).
void back_free_memory(Bytes size) {
  void* at =
      ::mmap(nullptr, size.count(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return;  // measured as it is
  }
  (void)::madvise(at, size.count(), MADV_HUGEPAGE);
  (void)::madvise(at, size.count(), MADV_POPULATE_WRITE);
  ::munmap(at, size.count());
}

/// A fresh memory, pager and engine; one pass of everything.
Measured run_pager(const Settings& settings, const MakeStore& make) {
  testing::OwnMemoryOptions options;
  options.size = settings.size;
  options.shards = settings.shards;
  testing::OwnMemory memory(options);
  const std::uint64_t pages = memory.pages();
  for (std::uint64_t page = 0; page < pages; ++page) {
    testing::fill_compressible(memory.page(page), page);
  }
  const auto pager = Pager::create(memory.ram(), make()).value();
  const FaultEngine engine(memory.ram(), {}, pager.get());
  PageWriter writer(*pager);

  Measured measured;
  measured.resident_metadata = pager->stats().metadata;
  back_free_memory(settings.size);
  const double cpu = thread_cpu_seconds();
  const auto out = Clock::now();
  page_out_all(writer, pages);
  measured.paging.out_seconds = seconds_since(out);
  measured.paging.out_cpu_seconds = thread_cpu_seconds() - cpu;
  measured.paged_out = pager->stats();
  if (measured.paged_out.paged_pages + measured.paged_out.rejected != pages) {
    std::fprintf(stderr, "pager: only %llu of %llu pages went out\n",
                 static_cast<unsigned long long>(measured.paged_out.paged_pages),
                 static_cast<unsigned long long>(pages));
  }
  measured.paging.in_ns = time_touches(memory.base(), random_pages(pages, 1), settings.threads);
  page_out_all(writer, pages);
  const auto sequential = Clock::now();
  touch_all(memory.base(), pages);
  measured.paging.sequential_seconds = seconds_since(sequential);
  return measured;
}

/// The same touches where the page is absent: the engine's zero page, no store.
PagingResult run_refault(const Settings& settings) {
  testing::OwnMemoryOptions options;
  options.size = settings.size;
  options.shards = settings.shards;
  options.populated = false;
  testing::OwnMemory memory(options);
  const FaultEngine engine(memory.ram(), {}, nullptr);
  PagingResult result;
  back_free_memory(settings.size);
  result.in_ns = time_touches(memory.base(), random_pages(memory.pages(), 1), settings.threads);
  return result;
}

/// All passes of one store put together: samples of all, medians of the rates.
struct Sum {
  std::vector<double> out_gib_per_s;
  std::vector<double> out_cpu_s_per_gib;
  std::vector<double> sequential_gib_per_s;
  std::vector<std::uint64_t> in_ns;
  PagerStats stats;
  double metadata_bytes_per_resident_page = 0;

  void add(const PagingResult& result, double gib) {
    if (result.out_seconds > 0) {
      out_gib_per_s.push_back(gib / result.out_seconds);
      out_cpu_s_per_gib.push_back(result.out_cpu_seconds / gib);
    }
    if (result.sequential_seconds > 0) {
      sequential_gib_per_s.push_back(gib / result.sequential_seconds);
    }
    in_ns.insert(in_ns.end(), result.in_ns.begin(), result.in_ns.end());
  }
};

Row row_of(const std::string& store, const Sum& sum) {
  Row row;
  row["store"] = store.c_str();
  if (!sum.out_gib_per_s.empty()) {
    row["page_out_gib_per_s"] = median(sum.out_gib_per_s);
    // On a busy machine the truer figure for "on one core".
    row["page_out_gib_per_cpu_s"] = 1 / median(sum.out_cpu_s_per_gib);
  } else {
    row["page_out_gib_per_s"] = nullptr;
  }
  row["page_in_p50_ns"] = percentile(sum.in_ns, 0.50);
  row["page_in_p90_ns"] = percentile(sum.in_ns, 0.90);
  row["page_in_p99_ns"] = percentile(sum.in_ns, 0.99);
  if (!sum.sequential_gib_per_s.empty()) {
    row["page_in_sequential_gib_per_s"] = median(sum.sequential_gib_per_s);
  }
  const PagerStats& stats = sum.stats;
  if (stats.paged_pages > 0) {
    row["metadata_bytes_per_page"] =
        static_cast<double>(stats.metadata.count()) / static_cast<double>(stats.paged_pages);
    row["metadata_bytes_per_resident_page"] = sum.metadata_bytes_per_resident_page;
    if (stats.store.memory.count() > 0) {
      row["ratio"] = static_cast<double>(Bytes::pages(stats.paged_pages).count()) /
                     static_cast<double>(stats.store.memory.count());
    }
  }
  return row;
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

int run(const Settings& settings) {
  const double gib = static_cast<double>(settings.size.count()) / (1U << 30);
  const auto compressed = [&](Compression compression) {
    // Room for half: the data compresses 3:1.
    return std::make_unique<CompressedStore>(
        CompressedStoreOptions{Bytes(settings.size.count() / 2), compression});
  };
  const auto file = [&] {
    return std::make_unique<FileStore>(
        StoreFile::open({settings.directory, settings.size, "bench"}).value(), nullptr);
  };
  struct Store {
    const char* name;
    MakeStore make;
    Sum sum;
  };
  std::vector<Store> stores;
  stores.push_back({"compressed", [&] { return compressed(Compression::lz4); }, {}});
  stores.push_back({"compressed-zstd", [&] { return compressed(Compression::zstd); }, {}});
  stores.push_back({"file", file, {}});
  Sum refault;
  Sum swap;
  std::string no_swap;
  // Passes take turns, so that a busy moment of the machine does not fall on one store alone.
  if (!settings.only.empty()) {
    no_swap = "not asked for";
    std::erase_if(stores, [&](const Store& store) {
      return std::find(settings.only.begin(), settings.only.end(), store.name) ==
             settings.only.end();
    });
  }
  for (unsigned pass = 0; pass < settings.repeat; ++pass) {
    refault.add(run_refault(settings), gib);
    for (Store& store : stores) {
      const Measured measured = run_pager(settings, store.make);
      store.sum.add(measured.paging, gib);
      store.sum.stats = measured.paged_out;
      store.sum.metadata_bytes_per_resident_page =
          static_cast<double>(measured.resident_metadata.count()) /
          static_cast<double>(settings.size.whole_pages());
    }
    if (no_swap.empty()) {
      if (const auto measured =
              run_kernel_swap(settings.directory, settings.size, settings.threads)) {
        swap.add(*measured, gib);
      } else {
        no_swap = measured.error().message;
      }
    }
  }

  Report report("pager");
  report.set("size_mib", settings.size.as_mib());
  report.set("passes", settings.repeat);
  const double refault_p50 = static_cast<double>(percentile(refault.in_ns, 0.5));
  const double swap_p50 = static_cast<double>(percentile(swap.in_ns, 0.5));
  const double swap_out = median(swap.out_gib_per_s);
  report.add(row_of("none (plain refault)", refault));
  if (no_swap.empty()) {
    report.add(row_of("kernel-swap", swap));
  } else {
    std::printf("kernel-swap: skipped: %s\n", no_swap.c_str());
    report.set("kernel_swap_skipped", no_swap.c_str());
  }
  for (const Store& store : stores) {
    Row row = row_of(store.name, store.sum);
    const double p50 = static_cast<double>(percentile(store.sum.in_ns, 0.5));
    row["p50_vs_refault"] = ratio(p50, refault_p50);
    if (no_swap.empty()) {
      row["p50_vs_swap"] = ratio(p50, swap_p50);
      row["out_vs_swap"] = ratio(median(store.sum.out_gib_per_s), swap_out);
    }
    report.add(std::move(row));
  }
  report.print_table(std::cout);
  if (!settings.json.empty()) {
    report.write_json(settings.json);
  }
  return 0;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  bench::Settings settings;
  settings.directory = std::filesystem::path(argv[0]).parent_path().string();
  CLI::App app("Page-out rate and page-in latency of each store, beside the kernel's swap");
  app.add_option("--json", settings.json, "write the rows to this file");
  app.add_option("--size", settings.size_text, "memory to page out and in")->capture_default_str();
  app.add_option("--dir", settings.directory,
                 "directory on the disk to compare on; the page file and the swap file are made "
                 "there (default: beside this program)");
  app.add_option("--repeat", settings.repeat, "passes over all stores")->capture_default_str();
  app.add_option("--threads", settings.threads, "threads that touch pages at once")
      ->capture_default_str()
      ->check(CLI::Range(1U, 64U));
  app.add_option("--shards", settings.shards,
                 "userfaultfds to divide the memory among, a reader thread each")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  app.add_option("--store", settings.only,
                 "only this one (compressed, compressed-zstd, file), beside the plain refault; may "
                 "be repeated")
      ->check(CLI::IsMember({"compressed", "compressed-zstd", "file"}));
  CLI11_PARSE(app, argc, argv);
  try {
    const auto size = parse_size(settings.size_text);
    if (!size || *size < Bytes::mib(4) || settings.repeat == 0) {
      std::fprintf(stderr, "pager: --size takes at least 4M, --repeat at least 1\n");
      return 2;
    }
    settings.size = size->page_floor();
    if (settings.directory.empty()) {
      settings.directory = ".";
    }
    return bench::run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pager: %s\n", error.what());
    return 1;
  }
}
