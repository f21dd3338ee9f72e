#include "tests/vm/guest/liar.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "fileballoon/session.h"
#include "fileballoon/wire.h"
#include "tests/vm/guest/pattern.h"
#include "tests/vm/guest/sysinfo.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

wire::SessionId random_id() {
  wire::SessionId id = 0;
  while (id == 0) {
    if (getrandom(&id, sizeof id, 0) != sizeof id) fail("getrandom");
  }
  return id;
}

// "System RAM" of /proc/iomem, as an honest agent would say it.
std::vector<FrameRange> system_ram() {
  std::vector<FrameRange> ram;
  std::ifstream lines("/proc/iomem");
  std::string line;
  while (std::getline(lines, line)) {
    if (line.empty() || line[0] == ' ' || line.find("System RAM") == std::string::npos) continue;
    const auto dash = line.find('-');
    const std::uint64_t start = std::stoull(line.substr(0, dash), nullptr, 16);
    const std::uint64_t end = std::stoull(line.substr(dash + 1), nullptr, 16) + 1;
    const std::uint64_t first = (start + kPage - 1) / kPage;
    ram.push_back({GuestFrame(first), end / kPage - first});
  }
  return ram;
}

class Channel {
 public:
  explicit Channel(const std::string& path)
      : fd_(open(path.c_str(), O_RDWR | O_CLOEXEC)), session_(random_id) {
    if (fd_ < 0) fail("open " + path);
    wire::Hello hello;
    hello.ram = system_ram();
    hello_ = hello;
    send(session_.hello(), hello_);
    while (!session_.is_established()) (void)receive();
  }
  ~Channel() { close(fd_); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Sends the report; its batch number.
  std::uint64_t report(std::vector<FrameRange> ranges) {
    const wire::Header header = session_.next_header();
    send(header, wire::Report{std::move(ranges)});
    return header.sequence;
  }

  wire::RangeOutcome await_ack(std::uint64_t batch) {
    while (true) {
      const wire::Message message = receive();
      const auto* ack = std::get_if<wire::Ack>(&message);
      if (ack == nullptr || ack->batch != batch) continue;
      wire::RangeOutcome sum;
      for (const wire::RangeOutcome& one : ack->outcomes) {
        sum.discarded += one.discarded;
        sum.not_zero += one.not_zero;
        sum.refused += one.refused;
        sum.failed += one.failed;
      }
      return sum;
    }
  }

 private:
  void send(const wire::Header& header, const wire::Message& message) {
    std::vector<std::byte> bytes;
    wire::encode(header, message, bytes);
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t n = write(fd_, bytes.data() + done, bytes.size() - done);
      if (n <= 0) fail("write to the channel");
      done += static_cast<std::size_t>(n);
    }
  }

  // The next message of the session; handshakes are dealt with on the way (as Unknown).
  wire::Message receive() {
    while (true) {
      if (auto item = decoder_.next()) {
        if (const auto* error = std::get_if<wire::DecodeError>(&*item)) {
          throw std::runtime_error("the daemon sent nonsense: " + error->text);
        }
        const auto& frame = std::get<wire::Frame>(*item);
        if (const auto* error = std::get_if<wire::ErrorMessage>(&frame.message)) {
          throw std::runtime_error("the daemon ended the session: " + error->text);
        }
        switch (session_.receive(frame.header)) {
          case Session::Verdict::deliver:
            return frame.message;
          case Session::Verdict::established:
            if (session_.must_reply()) send(session_.hello(), hello_);
            return wire::Unknown{};
          case Session::Verdict::reply_hello:
            send(session_.hello(), hello_);
            break;
          case Session::Verdict::ignore:
            break;
          case Session::Verdict::violation:
            throw std::runtime_error("the daemon broke the order: " + session_.violation());
        }
        continue;
      }
      pollfd poller{fd_, POLLIN, 0};
      if (poll(&poller, 1, 20000) <= 0) throw std::runtime_error("the daemon said nothing in 20 s");
      std::byte chunk[4096];
      const ssize_t n = read(fd_, chunk, sizeof chunk);
      if (n < 0 && errno != EAGAIN) fail("read from the channel");
      if (n <= 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        continue;
      }
      std::span<const std::byte> rest(chunk, static_cast<std::size_t>(n));
      if (decoder_.feed(rest) != rest.size()) throw std::runtime_error("the decoder is full");
    }
  }

  int fd_;
  Session session_;
  wire::Hello hello_;
  wire::Decoder decoder_;
};

/// Locked pages of one's own, with their frame numbers.
class Pages {
 public:
  explicit Pages(std::uint64_t count) : count_(count) {
    if (count > wire::kMaxRanges) throw std::invalid_argument("more pages than a report may name");
    void* memory =
        mmap(nullptr, count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    // Base pages, so that a frame is a page; locked, so that it stays.
    madvise(memory, count * kPage, MADV_NOHUGEPAGE);
    if (mlock(memory, count * kPage) != 0) fail("mlock");
    words_ = static_cast<std::uint64_t*>(memory);
  }

  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t* page(std::uint64_t index) { return words_ + index * kWordsPerPage; }

  void clear() { std::memset(words_, 0, count_ * kPage); }
  void fill(std::uint64_t seed) {
    for (std::uint64_t i = 0; i < count_; ++i) fill_page(page(i), seed, i);
  }
  [[nodiscard]] std::uint64_t wrong(std::uint64_t seed) {
    std::uint64_t errors = 0;
    for (std::uint64_t i = 0; i < count_; ++i) errors += check_page(page(i), seed, i) ? 0 : 1;
    return errors;
  }

  [[nodiscard]] std::vector<FrameRange> frames() const {
    const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("open /proc/self/pagemap");
    std::vector<std::uint64_t> entries(count_);
    const auto offset = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(words_) / kPage * 8);
    const ssize_t n = pread(fd, entries.data(), entries.size() * 8, offset);
    close(fd);
    if (n != static_cast<ssize_t>(entries.size() * 8)) fail("read /proc/self/pagemap");
    std::vector<GuestFrame> frames;
    for (const std::uint64_t entry : entries) {
      frames.emplace_back(entry & ((std::uint64_t{1} << 55) - 1));
    }
    std::vector<FrameRange> ranges;
    coalesce(frames, ranges);
    return ranges;
  }

 private:
  std::uint64_t count_;
  std::uint64_t* words_ = nullptr;
};

struct Totals {
  wire::RangeOutcome outcome;
  std::uint64_t errors = 0;
  void add(const wire::RangeOutcome& one) {
    outcome.discarded += one.discarded;
    outcome.not_zero += one.not_zero;
    outcome.refused += one.refused;
    outcome.failed += one.failed;
  }
  [[nodiscard]] boost::json::object result() const {
    return {{"discarded", outcome.discarded},
            {"not_zero", outcome.not_zero},
            {"refused", outcome.refused},
            {"failed", outcome.failed},
            {"errors", errors}};
  }
};

}  // namespace

void report_live_data(TaskPort& port, const std::string& path, std::uint64_t count) {
  Channel channel(path);
  Pages pages(count);
  pages.fill(1);
  Totals totals;
  totals.add(channel.await_ack(channel.report(pages.frames())));
  totals.errors = pages.wrong(1);
  port.reply(totals.result());
}

void report_while_writing(TaskPort& port, const std::string& path, std::uint64_t count,
                          std::uint64_t rounds) {
  Channel channel(path);
  Pages pages(count);
  Totals totals;
  std::uint64_t before_ack = 0;
  for (std::uint64_t round = 1; round <= rounds; ++round) {
    pages.clear();
    const std::vector<FrameRange> frames = pages.frames();
    std::atomic<bool> go{false};
    std::atomic<bool> acknowledged{false};
    std::atomic<std::uint64_t> early{0};
    std::thread writer([&] {
      while (!go.load()) std::this_thread::yield();
      // Later pages are written ever later, so that some writes meet the host's check, some its
      // discard, and some neither; the delay grows with the round to sweep the whole window.
      for (std::uint64_t i = 0; i < pages.count(); ++i) {
        fill_page(pages.page(i), round, i);
        if (!acknowledged.load(std::memory_order_relaxed)) early.fetch_add(1);
        const auto until = Clock::now() + std::chrono::microseconds(round % 16);
        while (Clock::now() < until) {
        }
      }
    });
    go.store(true);
    try {
      totals.add(channel.await_ack(channel.report(frames)));
    } catch (...) {
      acknowledged.store(true);
      writer.join();
      throw;
    }
    acknowledged.store(true);
    writer.join();
    before_ack += early.load();
    totals.errors += pages.wrong(round);
  }
  boost::json::object result = totals.result();
  result["written_before_ack"] = before_ack;
  port.reply(result);
}

}  // namespace fileballoon::guest
