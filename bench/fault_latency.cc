// fault_latency: what a refault costs the thread that waits for it. Pages of anonymous and memfd
// memory are discarded and touched again in three orders by 1, 2 and 4 threads, answered by the
// kernel itself, by a naive userfaultfd handler (poll, one message a read, one page an ioctl) and
// by this project's engine in each resolver; and where nobody has anything to do. Latency is taken
// in the touching thread, for every page touched; so the quantiles of a sequential run show that
// most pages cost nothing once a window has been answered. faults_per_s is pages brought back per
// second of wall time.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <barrier>
#include <iostream>
#include <map>
#include <random>
#include <system_error>
#include <thread>

#include "bench/median.h"
#include "bench/report.h"
#include "tests/integration/uffd_own_memory.h"

namespace fileballoon::bench {
namespace {

using testing::MemoryKind;
using testing::OwnMemory;
using Clock = std::chrono::steady_clock;

enum class Order { sequential, strided, random };
// present: nobody has anything to do, since the page table entry is there already. What a first
// touch costs then is the machine's own: under a hypervisor, what that does about a page that it
// has not mapped yet. No handler can be faster.
enum class Handler { present, kernel, naive, engine };

const char* name(Handler handler) {
  switch (handler) {
    case Handler::present:
      return "present";
    case Handler::kernel:
      return "kernel";
    case Handler::naive:
      return "naive";
    case Handler::engine:
      return "engine";
  }
  return "?";
}

const char* name(Order order) {
  return order == Order::sequential ? "sequential" : order == Order::strided ? "strided" : "random";
}

struct Case {
  MemoryKind memory = MemoryKind::memfd;
  Order order = Order::sequential;
  unsigned threads = 1;
  Handler handler = Handler::kernel;
  Resolver resolver = Resolver::zeropage;
  unsigned shards = 1;
};

// The handler of userfaultfd(2)'s manual page and of most programs.
class NaiveHandler {
 public:
  explicit NaiveHandler(const Userfaultfd& uffd) : uffd_(uffd), stop_(::eventfd(0, EFD_CLOEXEC)) {
    thread_ = std::thread([this] { run(); });
  }
  NaiveHandler(const NaiveHandler&) = delete;
  NaiveHandler& operator=(const NaiveHandler&) = delete;
  ~NaiveHandler() {
    const std::uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    thread_.join();
  }

 private:
  void run() {
    pollfd polled[2] = {{uffd_.fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    for (;;) {
      ::poll(polled, 2, -1);
      if (polled[1].revents != 0) {
        return;
      }
      std::array<uffd_msg, 1> message;
      std::size_t count = 0;
      if (uffd_.read(message, count) != UffdRead::messages) {
        continue;
      }
      const std::uint64_t at = message[0].arg.pagefault.address & ~(kPageSize - 1);
      const AddressRange page{at, Bytes(kPageSize)};
      if (uffd_.zeropage(page, Wake::yes).status == UffdStatus::exists) {
        (void)uffd_.wake(page).status;
      }
    }
  }
  const Userfaultfd& uffd_;
  UniqueFd stop_;
  std::thread thread_;
};

struct Measured {
  std::vector<std::uint32_t> latencies_ns;
  std::vector<double> rates;
  EngineStats stats;
};

// The pages that thread `t` of `threads` touches, in order.
std::vector<std::uint32_t> plan(const Case& c, std::uint64_t pages, unsigned t) {
  const auto share = static_cast<std::uint32_t>(pages / c.threads);
  const std::uint32_t base = t * share;
  std::vector<std::uint32_t> order;
  order.reserve(share);
  if (c.order == Order::strided) {
    constexpr std::uint32_t kStride = 16;
    for (std::uint32_t phase = 0; phase < kStride; ++phase) {
      for (std::uint32_t i = phase; i < share; i += kStride) {
        order.push_back(base + i);
      }
    }
    return order;
  }
  for (std::uint32_t i = 0; i < share; ++i) {
    order.push_back(base + i);
  }
  if (c.order == Order::random) {
    std::shuffle(order.begin(), order.end(), std::mt19937(t + 1));
  }
  return order;
}

void discard_all(OwnMemory& memory, const Case& c) {
  if (c.memory == MemoryKind::memfd) {
    (void)::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      static_cast<off_t>(memory.all().size.count()));
  } else {
    (void)::madvise(memory.base(), memory.all().size.count(), MADV_DONTNEED);
  }
  memory.ram().frames(0).set(0, memory.pages(), FrameState::absent);
}

void touch_all(OwnMemory& memory, const Case& c, Measured& result) {
  std::vector<std::vector<std::uint32_t>> plans;
  std::vector<std::vector<std::uint32_t>> latencies(c.threads);
  for (unsigned t = 0; t < c.threads; ++t) {
    plans.push_back(plan(c, memory.pages(), t));
    latencies[t].assign(plans[t].size(), 0);
  }
  std::barrier start(static_cast<std::ptrdiff_t>(c.threads));
  // By the threads' own clocks: a starter that is scheduled late would measure too little.
  std::vector<std::pair<Clock::time_point, Clock::time_point>> spans(c.threads);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < c.threads; ++t) {
    threads.emplace_back([&, t] {
      start.arrive_and_wait();
      spans[t].first = Clock::now();
      for (std::size_t i = 0; i < plans[t].size(); ++i) {
        auto* at = reinterpret_cast<volatile std::uint64_t*>(memory.page(plans[t][i]));
        const auto before = Clock::now();
        *at = 1;
        latencies[t][i] = static_cast<std::uint32_t>((Clock::now() - before).count());
      }
      spans[t].second = Clock::now();
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  auto [begin, end] = spans[0];
  for (const auto& span : spans) {
    begin = std::min(begin, span.first);
    end = std::max(end, span.second);
  }
  const double seconds = std::chrono::duration<double>(end - begin).count();
  result.rates.push_back(static_cast<double>(memory.pages()) / seconds);
  for (const auto& some : latencies) {
    result.latencies_ns.insert(result.latencies_ns.end(), some.begin(), some.end());
  }
}

Measured measure(const Case& c, Bytes size, unsigned rounds, std::chrono::microseconds max_spin) {
  OwnMemory::Options options;
  options.kind = c.memory;
  options.size = size;
  options.shards = c.shards;
  // As in a VM in uffd mode: missing and write-protect faults are watched. The kernel's own fault
  // is measured on memory that nobody watches.
  const bool watched = c.handler == Handler::naive || c.handler == Handler::engine;
  options.watch.mode = watched ? RefaultMode::engine : RefaultMode::kernel;
  options.watch.minor = c.resolver == Resolver::continue_;
  OwnMemory memory(options);
  if (!watched) {
    for (const auto& region : memory.ram().regions()) {
      memory.ram().shard_of(region).unwatch(region.where);
    }
  }
  std::unique_ptr<FaultEngine> engine;
  std::unique_ptr<NaiveHandler> naive;
  if (c.handler == Handler::engine) {
    FaultEngine::Options engine_options;
    engine_options.resolver = c.resolver;
    engine_options.max_spin = max_spin;
    engine = std::make_unique<FaultEngine>(memory.ram(), engine_options);
  } else if (c.handler == Handler::naive) {
    naive = std::make_unique<NaiveHandler>(memory.ram().shards()[0]);
  }
  Measured result;
  for (unsigned round = 0; round <= rounds; ++round) {
    discard_all(memory, c);
    if (c.handler == Handler::present &&
        ::madvise(memory.base(), memory.all().size.count(), MADV_POPULATE_WRITE) != 0) {
      throw std::system_error(errno, std::generic_category(), "MADV_POPULATE_WRITE");
    }
    if (round == 0) {  // warm-up
      Measured ignored;
      touch_all(memory, c, ignored);
    } else {
      touch_all(memory, c, result);
    }
  }
  if (engine) {
    result.stats = engine->stats();
  }
  return result;
}

std::uint64_t quantile(const std::vector<std::uint32_t>& sorted, double q) {
  return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  using namespace fileballoon::bench;
  std::string json;
  unsigned mib = 64;
  unsigned rounds = 5;
  auto max_spin_us = static_cast<unsigned>(FaultEngine::Options{}.max_spin.count());
  bool quick = false;
  CLI::App app("Latency and rate of refaults: kernel, naive handler, and this project's engine");
  app.add_option("--json", json, "write one JSON object to FILE");
  app.add_option("--mib", mib, "memory per case, MiB");
  app.add_option("--rounds", rounds, "measured rounds per case, after one of warm-up");
  app.add_option("--max-spin", max_spin_us, "longest spin of the engine's readers, microseconds");
  app.add_flag("--quick", quick, "one thread, the default resolver");
  CLI11_PARSE(app, argc, argv);

  std::vector<Case> cases;
  for (const MemoryKind memory : {MemoryKind::anonymous, MemoryKind::memfd}) {
    for (const Order order : {Order::sequential, Order::strided, Order::random}) {
      for (const unsigned threads : {1U, 2U, 4U}) {
        if (quick && threads > 1) {
          continue;
        }
        cases.push_back({memory, order, threads, Handler::kernel, {}, 1});
        cases.push_back({memory, order, threads, Handler::present, {}, 1});
        cases.push_back({memory, order, threads, Handler::naive, {}, 1});
        cases.push_back({memory, order, threads, Handler::engine, Resolver::zeropage, 2});
        cases.push_back({memory, order, threads, Handler::engine, Resolver::zeropage, 1});
        if (quick) {
          continue;
        }
        if (memory == MemoryKind::memfd) {
          for (const Resolver resolver :
               {Resolver::populate, Resolver::fallocate, Resolver::continue_}) {
            cases.push_back({memory, order, threads, Handler::engine, resolver, 2});
          }
        }
        if (threads > 2) {
          cases.push_back({memory, order, threads, Handler::engine, Resolver::zeropage, threads});
        }
      }
    }
  }

  Report report("fault_latency");
  struct Base {
    double kernel_rate = 0;
    std::uint64_t naive_p50 = 0;
    std::uint64_t naive_p99 = 0;
  };
  std::map<std::string, Base> base;
  std::map<std::string, double> single;  // the engine's rate with one thread
  for (const Case& c : cases) {
    Measured measured = measure(c, Bytes::mib(mib), rounds, std::chrono::microseconds(max_spin_us));
    auto& sorted = measured.latencies_ns;
    std::sort(sorted.begin(), sorted.end());
    const double rate = median(measured.rates);
    const std::string memory = c.memory == MemoryKind::memfd ? "memfd" : "anon";
    const std::string key = memory + name(c.order) + std::to_string(c.threads);
    if (c.handler == Handler::kernel) {
      base[key].kernel_rate = rate;
    } else if (c.handler == Handler::naive) {
      base[key].naive_p50 = quantile(sorted, 0.5);
      base[key].naive_p99 = quantile(sorted, 0.99);
    }
    Row row;
    row["memory"] = memory;
    row["order"] = name(c.order);
    row["threads"] = c.threads;
    row["handler"] = name(c.handler);
    row["resolver"] = c.handler == Handler::engine ? boost::json::value(to_string(c.resolver))
                                                   : boost::json::value(nullptr);
    row["shards"] = c.shards;
    row["p50_ns"] = quantile(sorted, 0.5);
    row["p90_ns"] = quantile(sorted, 0.9);
    row["p99_ns"] = quantile(sorted, 0.99);
    row["p999_ns"] = quantile(sorted, 0.999);
    row["faults_per_s"] = static_cast<std::uint64_t>(rate);
    if (c.handler == Handler::engine && c.shards == 2 && c.resolver == Resolver::zeropage) {
      // Against the same handler with one faulting thread: no collapse on a single wait queue.
      const std::string family = memory + name(c.order);
      if (c.threads == 1) {
        single[family] = rate;
      }
      row["rate_to_one_thread"] = rate / single[family];
    }
    row["rate_to_kernel"] = rate / base[key].kernel_rate;
    if (base[key].naive_p50 != 0) {
      row["p50_to_naive"] =
          static_cast<double>(quantile(sorted, 0.5)) / static_cast<double>(base[key].naive_p50);
      row["p99_to_naive"] =
          static_cast<double>(quantile(sorted, 0.99)) / static_cast<double>(base[key].naive_p99);
    }
    if (c.handler == Handler::engine) {
      const auto& stats = measured.stats;
      row["pages_per_message"] =
          static_cast<double>(stats.pages_filled) /
          static_cast<double>(std::max<std::uint64_t>(
              1, stats.missing_faults + stats.minor_faults + stats.shared_answers));
    }
    report.add(std::move(row));
  }
  report.print_table(std::cout);
  if (!json.empty()) {
    report.write_json(json);
  }
}
