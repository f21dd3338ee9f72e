#include "tests/vm/guest/memory_work.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <system_error>
#include <vector>

#include "tests/vm/guest/pattern.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::uint64_t* map_anonymous(std::uint64_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(),
                            "mmap of " + std::to_string(size) + " bytes");
  }
  return static_cast<std::uint64_t*>(memory);
}

}  // namespace

void hold_memory(TaskPort& port, std::uint64_t size, std::uint64_t seed) {
  const std::uint64_t pages = size / kPage;
  std::uint64_t* words = map_anonymous(size);
  const auto start = Clock::now();
  for (std::uint64_t page = 0; page < pages; ++page) {
    fill_page(words + page * kWordsPerPage, seed, page);
  }
  port.reply({{"fill_s", since(start)}, {"pages", pages}});
  while (const auto order = port.next_order()) {
    if (!order->contains("check")) {
      port.fail("a memory task knows only the order check");
      continue;
    }
    std::uint64_t errors = 0;
    std::uint64_t first = pages;
    const auto check_start = Clock::now();
    for (std::uint64_t page = 0; page < pages; ++page) {
      if (check_page(words + page * kWordsPerPage, seed, page)) continue;
      if (errors++ == 0) first = page;
    }
    boost::json::object result{
        {"pages", pages}, {"errors", errors}, {"check_s", since(check_start)}};
    if (errors > 0) {
      result["first_wrong_page"] = first;
      result["first_wrong_word"] = words[first * kWordsPerPage];
    }
    port.reply(result);
  }
}

void touch_and_free(TaskPort& port, std::uint64_t size) {
  std::uint64_t* words = map_anonymous(size);
  const auto start = Clock::now();
  for (std::uint64_t page = 0; page < size / kPage; ++page) {
    fill_page(words + page * kWordsPerPage, 0, page);
  }
  munmap(words, size);
  port.reply({{"touch_s", since(start)}, {"pages", size / kPage}});
}

void read_file(TaskPort& port, const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "open " + path);
  std::vector<char> buffer(std::size_t{1} << 20);
  std::uint64_t bytes = 0;
  const auto start = Clock::now();
  ssize_t n = 0;
  while ((n = read(fd, buffer.data(), buffer.size())) > 0) bytes += static_cast<std::uint64_t>(n);
  const int error = errno;
  close(fd);
  if (n < 0) throw std::system_error(error, std::generic_category(), "read " + path);
  port.reply({{"bytes", bytes}, {"read_s", since(start)}});
}

}  // namespace fileballoon::guest
