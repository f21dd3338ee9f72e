#include "tests/vm/guest/staircase.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>
#include <vector>

#include "tests/vm/guest/pattern.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kAnonymousSeed = 13;
constexpr std::size_t kReadSize = std::size_t{256} << 10;
/// Work beside memory in each pass, so that a pass is not memory traffic alone: about 0.15 s of a
/// CPU under TCG.
constexpr std::uint64_t kComputeSteps = 40'000'000;
/// How finely the set's growing and shrinking is told.
constexpr std::uint64_t kPiece = std::uint64_t{8} << 20;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What of a working set that changes is in use at which moment.
class InUse {
 public:
  explicit InUse(std::uint64_t in_use) : in_use_(in_use) {}
  void add(std::uint64_t bytes) {
    in_use_ += bytes;
    note();
  }
  void remove(std::uint64_t bytes) {
    in_use_ -= bytes;
    note();
  }
  /// These are not used any more. A page that is used once in every pass is in use until the pass
  /// that would have come to it again is over: so they leave evenly in the time of one.
  void leave_within(std::uint64_t bytes, double pass_s) {
    in_use_ -= bytes;
    leaving_ = bytes;
    pass_s_ = pass_s;
  }
  [[nodiscard]] boost::json::array take() {
    if (leaving_ > 0) note_at(std::max(pass_s_, last_s_));
    return std::move(points_);
  }

 private:
  void note() { note_at(since(start_)); }
  void note_at(double seconds) {
    const double left = leaving_ > 0 && seconds < pass_s_ ? 1 - seconds / pass_s_ : 0;
    points_.push_back(boost::json::array{
        seconds, in_use_ + static_cast<std::uint64_t>(left * static_cast<double>(leaving_))});
    last_s_ = seconds;
  }
  Clock::time_point start_ = Clock::now();
  std::uint64_t in_use_;
  std::uint64_t leaving_ = 0;
  double pass_s_ = 0;
  double last_s_ = 0;
  boost::json::array points_;
};

class File {
 public:
  File(const std::string& path, std::uint64_t seed)
      : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)), seed_(seed), buffer_(kReadSize / 8) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "open " + path);
    size_ = static_cast<std::uint64_t>(lseek(fd_, 0, SEEK_END));
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  [[nodiscard]] std::uint64_t size() const { return size_; }
  /// Reads `length` bytes; pages whose first word is wrong.
  std::uint64_t read(std::uint64_t offset, std::uint64_t length) {
    std::uint64_t errors = 0;
    for (std::uint64_t at = offset; at < offset + length;) {
      const std::size_t want = std::min<std::uint64_t>(kReadSize, offset + length - at);
      const ssize_t got = pread(fd_, buffer_.data(), want, static_cast<off_t>(at));
      if (got < static_cast<ssize_t>(kPage)) {
        throw std::system_error(got < 0 ? errno : EIO, std::generic_category(), "read");
      }
      const std::size_t pages = static_cast<std::size_t>(got) / kPage;
      for (std::size_t page = 0; page < pages; ++page) {
        errors += buffer_[page * kWordsPerPage] != page_seed(seed_, at / kPage + page) ? 1 : 0;
      }
      at += pages * kPage;
    }
    return errors;
  }
  /// The first read of [from, to), which was not part of the set before.
  std::uint64_t grow(std::uint64_t from, std::uint64_t to, InUse& in_use) {
    std::uint64_t errors = 0;
    for (std::uint64_t at = from; at < to; at += kPiece) {
      const std::uint64_t length = std::min(kPiece, to - at);
      errors += read(at, length);
      in_use.add(length);
    }
    return errors;
  }

 private:
  int fd_;
  std::uint64_t seed_;
  std::uint64_t size_ = 0;
  std::vector<std::uint64_t> buffer_;
};

/// Anonymous memory that can be made larger and smaller.
class Anonymous {
 public:
  explicit Anonymous(std::uint64_t largest) {
    void* memory = mmap(nullptr, largest, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    words_ = static_cast<std::uint64_t*>(memory);
  }

  void resize(std::uint64_t pages, InUse& in_use) {
    std::uint64_t told = pages_;
    for (std::uint64_t page = pages_; page < pages; ++page) {
      fill_page(words_ + page * kWordsPerPage, kAnonymousSeed, page);
      if (page + 1 == pages || (page + 1 - told) * kPage >= kPiece) {
        in_use.add((page + 1 - told) * kPage);
        told = page + 1;
      }
    }
    // In pieces as well, since giving memory back takes the kernel time.
    while (pages < pages_) {
      const std::uint64_t piece = std::min(pages_ - pages, kPiece / kPage);
      pages_ -= piece;
      madvise(words_ + pages_ * kWordsPerPage, piece * kPage, MADV_DONTNEED);
      in_use.remove(piece * kPage);
    }
    pages_ = pages;
  }
  /// Writes a word of every page after looking at it; wrong pages.
  std::uint64_t touch() {
    std::uint64_t errors = 0;
    for (std::uint64_t page = 0; page < pages_; ++page) {
      std::uint64_t& word = words_[page * kWordsPerPage];
      const std::uint64_t expected = page_seed(kAnonymousSeed, page);
      errors += word != expected ? 1 : 0;
      word = expected;
    }
    return errors;
  }

 private:
  std::uint64_t* words_ = nullptr;
  std::uint64_t pages_ = 0;
};

void compute() {
  std::uint64_t x = 88172645463325252ULL;
  for (std::uint64_t i = 0; i < kComputeSteps; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    asm volatile("" : "+r"(x));
  }
}

}  // namespace

void climb_staircase(TaskPort& port, const StaircaseFiles& files, std::uint64_t largest) {
  File hot(files.hot, kHotSeed);
  File once(files.once, kOnceSeed);
  Anonymous anonymous(largest / 2);
  std::uint64_t once_at = 0;
  std::uint64_t half_before = 0;
  double last_pass_s = 0;
  port.reply({{"hot_bytes", hot.size()}, {"once_bytes", once.size()}});
  while (const auto order = port.next_order()) {
    const auto size = order->at("size").to_number<std::uint64_t>();
    const auto passes = order->at("passes").to_number<std::uint64_t>();
    const std::uint64_t half = size / 2 / kPage * kPage;
    if (half > largest / 2 || half > hot.size()) {
      port.fail("the working set is larger than what the staircase was made for");
      continue;
    }
    const auto start = Clock::now();
    InUse in_use(2 * half_before);
    if (half < half_before) {
      in_use.leave_within(half_before - half, last_pass_s);
    }
    anonymous.resize(half / kPage, in_use);
    std::uint64_t errors = hot.grow(half_before, half, in_use);
    half_before = half;
    double longest = 0;
    boost::json::array pass_seconds;
    for (std::uint64_t pass = 0; pass < passes; ++pass) {
      const auto pass_start = Clock::now();
      errors += anonymous.touch();
      errors += hot.read(0, half);
      if (once_at + kOncePerPass <= once.size()) {
        errors += once.read(once_at, kOncePerPass);
        once_at += kOncePerPass;
      }
      compute();
      last_pass_s = since(pass_start);
      longest = std::max(longest, last_pass_s);
      pass_seconds.emplace_back(last_pass_s);
    }
    port.reply({{"seconds", since(start)},
                {"errors", errors},
                {"longest_pass_s", longest},
                {"pass_seconds", std::move(pass_seconds)},
                {"in_use", in_use.take()}});
  }
}

}  // namespace fileballoon::guest
