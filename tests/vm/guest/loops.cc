#include "tests/vm/guest/loops.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "tests/vm/guest/pattern.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kPagesPerOperation = 64;
constexpr std::size_t kReadSize = std::size_t{256} << 10;
/// Latencies kept, allocated and touched beforehand: recording must not need memory.
constexpr std::size_t kMostOperations = std::size_t{1} << 20;

double microseconds(Clock::duration span) {
  return std::chrono::duration<double, std::micro>(span).count();
}

/// Time that this thread has waited for a CPU of the guest while it was ready, seconds.
double waited_seconds() {
  std::ifstream numbers("/proc/thread-self/schedstat");  // ns on a CPU, ns waited, time slices
  double ran_ns = 0;
  double waited_ns = 0;
  numbers >> ran_ns >> waited_ns;
  return waited_ns / 1e9;
}

void run_loops(TaskPort& port, const std::function<void(std::uint64_t)>& operation) {
  std::vector<float> latencies(kMostOperations, 0.0F);
  std::minstd_rand random(1);
  port.reply({});
  while (const auto order = port.next_order()) {
    const auto length = std::chrono::duration<double>(order->at("seconds").to_number<double>());
    const auto start = Clock::now();
    auto now = start;
    std::size_t count = 0;
    const double waited_before = waited_seconds();
    while (now - start < length && count < kMostOperations) {
      operation(random());
      const auto end = Clock::now();
      latencies[count++] = static_cast<float>(microseconds(end - now));
      now = end;
    }
    const double waited = waited_seconds() - waited_before;
    const auto last = latencies.begin() + static_cast<std::ptrdiff_t>(count);
    std::sort(latencies.begin(), last);
    port.reply({{"operations", count},
                {"seconds", microseconds(now - start) / 1e6},
                {"waited_s", waited},
                {"p50_us", latencies.at(count / 2)},
                {"p99_us", latencies.at(count * 99 / 100)}});
  }
}

// Private, and each page written to once.
std::uint64_t* touched_memory(std::uint64_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  auto* words = static_cast<std::uint64_t*>(memory);
  for (std::uint64_t page = 0; page < size / kPage; ++page) words[page * kWordsPerPage] = page;
  return words;
}

}  // namespace

void loop_over_memory(TaskPort& port, std::uint64_t size) {
  auto* words = touched_memory(size);
  const std::uint64_t pages = size / kPage;
  run_loops(port, [=](std::uint64_t random) {
    for (std::uint64_t i = 0; i < kPagesPerOperation; ++i) {
      ++words[(random * 48271 + i * 7919) % pages * kWordsPerPage];
    }
  });
}

void stream_over_memory(TaskPort& port, std::uint64_t size) {
  auto* words = touched_memory(size);
  constexpr std::uint64_t kWords = kPagesPerOperation * kWordsPerPage;
  const std::uint64_t places = size / kPage / kPagesPerOperation;
  std::uint64_t place = 0;
  run_loops(port, [=](std::uint64_t random) mutable {
    std::uint64_t* from = words + place * kWords;
    std::for_each(from, from + kWords, [=](std::uint64_t& word) { word += random; });
    place = (place + 1) % places;
  });
}

void loop_over_file(TaskPort& port, const std::string& path, std::uint64_t size) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "open " + path);
  std::vector<char> buffer(kReadSize);
  const std::uint64_t places = size / kReadSize;
  const auto read_at = [&](std::uint64_t place) {
    const auto offset = static_cast<off_t>(place % places * kReadSize);
    if (pread(fd, buffer.data(), kReadSize, offset) != static_cast<ssize_t>(kReadSize)) {
      throw std::system_error(errno, std::generic_category(), "read " + path);
    }
  };
  for (std::uint64_t place = 0; place < places; ++place) read_at(place);
  run_loops(port, read_at);
  close(fd);
}

void switch_address_spaces(TaskPort& port, unsigned cpu, std::chrono::microseconds every) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) {
    throw std::system_error(errno, std::generic_category(), "CPU " + std::to_string(cpu));
  }
  port.reply({});
  while (true) std::this_thread::sleep_for(every);
}

}  // namespace fileballoon::guest
