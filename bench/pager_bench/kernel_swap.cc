#include "bench/pager_bench/kernel_swap.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "bench/clock.h"
#include "fileballoon/unique_fd.h"
#include "tests/unit/store_pages.h"

namespace fileballoon::bench {
namespace {

// A swap file in use; out of use and gone when this is.
class SwapFile {
 public:
  static Result<SwapFile> make(const std::string& directory, Bytes size) {
    SwapFile file(directory + "/fileballoon-bench.swap." + std::to_string(::getpid()));
    const UniqueFd fd(::open(file.path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd.valid()) {
      return Error{file.path_ + ": " + std::strerror(errno)};
    }
    file.made_ = true;
    // What mkswap writes (include/linux/swap.h, union swap_header), and real blocks behind it.
    std::vector<char> header(kPageSize, 0);
    const std::uint32_t version = 1;
    const auto last_page = static_cast<std::uint32_t>(size.whole_pages() - 1);
    std::memcpy(header.data() + 1024, &version, sizeof(version));
    std::memcpy(header.data() + 1028, &last_page, sizeof(last_page));
    std::memcpy(header.data() + kPageSize - 10, "SWAPSPACE2", 10);
    if (::posix_fallocate(fd.get(), 0, static_cast<off_t>(size.count())) != 0 ||
        ::pwrite(fd.get(), header.data(), header.size(), 0) !=
            static_cast<ssize_t>(header.size()) ||
        ::fsync(fd.get()) != 0) {
      return Error{file.path_ + ": cannot write it: " + std::strerror(errno)};
    }
    if (::swapon(file.path_.c_str(), 0) != 0) {
      return Error{"swapon " + file.path_ + ": " + std::strerror(errno)};
    }
    file.active_ = true;
    return file;
  }
  SwapFile(SwapFile&& other) noexcept
      : path_(std::move(other.path_)),
        made_(std::exchange(other.made_, false)),
        active_(std::exchange(other.active_, false)) {}
  SwapFile(const SwapFile&) = delete;
  SwapFile& operator=(const SwapFile&) = delete;
  ~SwapFile() {
    if (active_ && ::swapoff(path_.c_str()) != 0) {
      std::fprintf(stderr, "pager: swapoff %s: %s\n", path_.c_str(), std::strerror(errno));
    }
    if (made_) {
      ::unlink(path_.c_str());
    }
  }

 private:
  explicit SwapFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
  bool made_ = false;
  bool active_ = false;
};

// A memory cgroup for the measuring child, to have the kernel drop pages that are written to swap
// and linger in the swap cache: a machine with free memory would keep them there, and "page-in"
// would never see the disk.
class ReclaimGroup {
 public:
  static Result<ReclaimGroup> make() {
    // v1 (force_empty), then v2 (memory.reclaim).
    for (const auto& [root, file, text] :
         {std::array{"/sys/fs/cgroup/memory", "memory.force_empty", "0"},
          std::array{"/sys/fs/cgroup", "memory.reclaim", "1T"}}) {
      ReclaimGroup group(std::string(root) + "/fileballoon-bench." + std::to_string(::getpid()),
                         file, text);
      if (::mkdir(group.path_.c_str(), 0700) == 0) {
        group.made_ = true;
        if (::access((group.path_ + "/" + file).c_str(), W_OK) == 0) {
          return group;
        }
      }
    }
    return Error{
        "no memory cgroup to be had (root, with the memory controller): the swap cache cannot be "
        "emptied"};
  }
  ReclaimGroup(ReclaimGroup&& other) noexcept
      : path_(std::move(other.path_)),
        file_(other.file_),
        text_(other.text_),
        made_(std::exchange(other.made_, false)) {}
  ReclaimGroup(const ReclaimGroup&) = delete;
  ReclaimGroup& operator=(const ReclaimGroup&) = delete;
  ~ReclaimGroup() {
    // Empty only once the child's memory is gone for good.
    for (int i = 0; made_ && i < 100 && ::rmdir(path_.c_str()) != 0 && errno == EBUSY; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  [[nodiscard]] bool join() const {
    return write("cgroup.procs", std::to_string(::getpid()).c_str());
  }
  void reclaim() const { (void)write(file_, text_); }

 private:
  ReclaimGroup(std::string path, const char* file, const char* text)
      : path_(std::move(path)), file_(file), text_(text) {}
  [[nodiscard]] bool write(const char* file, const char* text) const {
    const UniqueFd fd(::open((path_ + "/" + file).c_str(), O_WRONLY | O_CLOEXEC));
    return fd.valid() && ::write(fd.get(), text, std::strlen(text)) >= 0;
  }

  std::string path_;
  const char* file_;
  const char* text_;
  bool made_ = false;
};

bool mostly_out(void* base, Bytes size) {
  std::vector<unsigned char> resident(size.whole_pages());
  if (::mincore(base, size.count(), resident.data()) != 0) {
    return true;
  }
  const auto in = std::count_if(resident.begin(), resident.end(), [](auto r) { return r & 1; });
  return static_cast<std::uint64_t>(in) * 200 < resident.size();
}

// Runs in a child of its own.
PagingResult measure(const ReclaimGroup& group, Bytes size, unsigned threads) {
  PagingResult result;
  if (!group.join()) {
    return result;
  }
  const UniqueFd fd(::memfd_create("swapped", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(size.count())) != 0) {
    return result;
  }
  void* at = ::mmap(nullptr, size.count(), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) {
    return result;
  }
  auto* base = static_cast<std::byte*>(at);
  (void)::madvise(base, size.count(), MADV_NOHUGEPAGE);
  for (std::uint64_t page = 0; page < size.whole_pages(); ++page) {
    testing::fill_compressible(base + page * kPageSize, page);
  }
  const auto out = [&] {
    // MADV_PAGEOUT starts the writes; the reclaim frees what has been written since.
    (void)::madvise(base, size.count(), MADV_PAGEOUT);
    for (int round = 0; round < 1000 && !mostly_out(base, size); ++round) {
      group.reclaim();
    }
  };
  struct rusage before {};
  struct rusage after {};
  ::getrusage(RUSAGE_THREAD, &before);
  const auto start = Clock::now();
  out();
  result.out_seconds = seconds_since(start);
  ::getrusage(RUSAGE_THREAD, &after);
  const auto cpu = [](const struct rusage& r) {
    return static_cast<double>(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
  };
  result.out_cpu_seconds = cpu(after) - cpu(before);
  result.in_ns = time_touches(base, random_pages(size.whole_pages(), 1), threads);
  out();
  const auto sequential = Clock::now();
  touch_all(base, size.whole_pages());
  result.sequential_seconds = seconds_since(sequential);
  ::munmap(at, size.count());
  return result;
}

bool write_all(int fd, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t wrote = ::write(fd, at, size);
    if (wrote <= 0) {
      return false;
    }
    at += wrote;
    size -= static_cast<std::size_t>(wrote);
  }
  return true;
}

bool read_all(int fd, void* data, std::size_t size) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::read(fd, at, size);
    if (got <= 0) {
      return false;
    }
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace

std::vector<std::uint64_t> random_pages(std::uint64_t pages, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::uint64_t> order;
  for (std::uint64_t group = 0; group + 16 <= pages; group += 16) {
    order.push_back(group + random() % 16);
  }
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

std::vector<std::uint64_t> time_touches(const std::byte* base,
                                        const std::vector<std::uint64_t>& order, unsigned threads) {
  std::vector<std::uint64_t> times(order.size());
  const auto touch = [&](std::size_t first) {
    for (std::size_t i = first; i < order.size(); i += threads) {
      const auto start = Clock::now();
      (void)*reinterpret_cast<const volatile std::uint64_t*>(base + order[i] * kPageSize);
      const auto spent = Clock::now() - start;
      times[i] = static_cast<std::uint64_t>(
          std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
    }
  };
  std::vector<std::thread> others;
  for (unsigned thread = 1; thread < threads; ++thread) {
    others.emplace_back(touch, thread);
  }
  touch(0);
  for (std::thread& other : others) {
    other.join();
  }
  return times;
}

void touch_all(const std::byte* base, std::uint64_t pages) {
  for (std::uint64_t page = 0; page < pages; ++page) {
    (void)*reinterpret_cast<const volatile std::uint64_t*>(base + page * kPageSize);
  }
}

Result<PagingResult> run_kernel_swap(const std::string& directory, Bytes size, unsigned threads) {
  // An interrupt ends the measuring child; this process stays to clean up.
  sigset_t interrupts;
  sigset_t old;
  sigemptyset(&interrupts);
  sigaddset(&interrupts, SIGINT);
  sigaddset(&interrupts, SIGTERM);
  sigaddset(&interrupts, SIGHUP);
  sigprocmask(SIG_BLOCK, &interrupts, &old);
  Result<PagingResult> result = Error{"the measuring process was killed"};
  {
    auto swap = SwapFile::make(directory, size + Bytes::mib(64));
    const auto group = ReclaimGroup::make();
    int ends[2] = {-1, -1};
    if (!swap) {
      result = swap.error();
    } else if (!group) {
      result = group.error();
    } else if (::pipe2(ends, O_CLOEXEC) == 0) {
      const pid_t child = ::fork();
      if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigprocmask(SIG_SETMASK, &old, nullptr);
        const PagingResult measured = measure(*group, size, threads);
        const double numbers[3] = {measured.out_seconds, measured.out_cpu_seconds,
                                   measured.sequential_seconds};
        const std::uint64_t count = measured.in_ns.size();
        const bool sent = write_all(ends[1], numbers, sizeof(numbers)) &&
                          write_all(ends[1], &count, sizeof(count)) &&
                          write_all(ends[1], measured.in_ns.data(), count * sizeof(std::uint64_t));
        ::_exit(sent ? 0 : 1);
      }
      ::close(ends[1]);
      const UniqueFd from(ends[0]);
      double numbers[3] = {};
      std::uint64_t count = 0;
      PagingResult measured;
      if (child > 0 && read_all(from.get(), numbers, sizeof(numbers)) &&
          read_all(from.get(), &count, sizeof(count)) && count > 0 && count < (1U << 28)) {
        measured.in_ns.resize(count);
        if (read_all(from.get(), measured.in_ns.data(), count * sizeof(std::uint64_t))) {
          measured.out_seconds = numbers[0];
          measured.out_cpu_seconds = numbers[1];
          measured.sequential_seconds = numbers[2];
          result = std::move(measured);
        }
      }
      if (child > 0) {
        ::waitpid(child, nullptr, 0);
      }
    }
  }
  sigprocmask(SIG_SETMASK, &old, nullptr);
  return result;
}

}  // namespace fileballoon::bench
