#include "tests/vm/guest/job.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>

#include "tests/vm/guest/pattern.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

void run_job(TaskPort& port, const JobShape& shape) {
  void* memory = mmap(nullptr, shape.size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  auto* words = static_cast<std::uint64_t*>(memory);
  const std::uint64_t pages = shape.size / kPage;
  const std::uint64_t hot = std::min(pages, shape.hot / kPage);
  std::uint64_t errors = 0;
  const auto check = [&](std::uint64_t page) {
    errors += check_page(words + page * kWordsPerPage, shape.seed, page) ? 0 : 1;
  };

  const auto start = Clock::now();
  constexpr std::uint64_t kStep = 256;  // pages, 1 MiB: between two looks at the clock
  for (std::uint64_t page = 0; page < pages; ++page) {
    if (shape.rate > 0 && page % kStep == 0) {
      std::this_thread::sleep_until(
          start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                      static_cast<double>(page * kPage) / static_cast<double>(shape.rate))));
    }
    fill_page(words + page * kWordsPerPage, shape.seed, page);
  }
  const double grow_s = since(start);
  for (std::uint64_t pass = 0; pass < shape.passes; ++pass) {
    for (std::uint64_t page = 0; page < hot; ++page) {
      check(page);
      fill_page(words + page * kWordsPerPage, shape.seed, page);
    }
  }
  const double work_s = since(start) - grow_s;
  for (std::uint64_t page = 0; page < pages; ++page) check(page);
  const double seconds = since(start);
  munmap(memory, shape.size);
  port.reply({{"seconds", seconds},
              {"grow_s", grow_s},
              {"work_s", work_s},
              {"check_s", seconds - grow_s - work_s},
              {"errors", errors}});
}

}  // namespace fileballoon::guest
