// guest_fill: what each step of inflating costs, per page, and what its alternatives cost. It
// mounts balloonfs' own file system (the server in a child process, as in the agent) and drives the
// page cache by hand, without any host. It runs where the balloon would run, so it is linked
// statically: copy it into a guest, or let `guest_fill_vm` do that.
//
//   guest_fill [MIB]      default 256; prints one line of key=value pairs per variant
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "fileballoon/process_cpu.h"
#include "fileballoon/unique_fd.h"
#include "guest-fs/balloon_file.h"
#include "guest-fs/frame_lookup.h"
#include "guest-fs/fuse_server.h"
#include "guest-fs/page_window.h"
#include "guest-fs/pin_pipe.h"

namespace fileballoon::guest {
namespace {

using Clock = std::chrono::steady_clock;

struct Variant {
  const char* name;
  PageChoice pages = PageChoice::small;
  bool empty_reply = true;   ///< READ answered by the kernel's own zeroing
  bool prefetch = true;      ///< read-ahead asked for two batches before it is needed
  bool splice_file = false;  ///< splice(file -> pipe), then map; else map, then vmsplice
  bool touch = false;        ///< map by touching a byte per 64 KiB before vmsplice
  int server_threads = 2;
  std::uint64_t place_group = 0;  ///< pages placed by one advice while inflating; 0: none
};

constexpr std::array kVariants = {
    Variant{.name = "large-pages", .pages = PageChoice::automatic},
    Variant{.name = "small-pages"},
    Variant{.name = "copied-reply", .empty_reply = false},
    Variant{.name = "touch", .touch = true},
    Variant{.name = "splice-then-map", .splice_file = true},
    Variant{.name = "no-prefetch", .prefetch = false},
    Variant{.name = "one-server-thread", .server_threads = 1},
    Variant{.name = "place-inline", .place_group = 2048},
    Variant{.name = "place-every-batch", .place_group = 256},
};

class Server {
 public:
  Server(const std::string& mount_point, const Variant& variant) {
    std::array<int, 2> ready{};
    if (::pipe(ready.data()) != 0) {
      throw std::runtime_error("pipe");
    }
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      SharedBlock* const shared = SharedBlock::create();
      FuseServerConfig config;
      config.mount_point = mount_point;
      config.wake_inflater = [] {};
      config.copy_zeros = !variant.empty_reply;
      FuseServer server(std::move(config), *shared);
      server.set_inflater(parent);
      server.start(variant.server_threads, [] {});
      [[maybe_unused]] const ssize_t written = ::write(ready[1], "+", 1);
      while (true) {
        ::pause();
      }
    }
    char byte = 0;
    ::close(ready[1]);
    if (::read(ready[0], &byte, 1) != 1) {
      throw std::runtime_error("the file system did not come up");
    }
    ::close(ready[0]);
    mount_point_ = mount_point;
  }
  ~Server() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::umount2(mount_point_.c_str(), MNT_DETACH);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// CPU time used so far, seconds.
  [[nodiscard]] double cpu_seconds() const { return cpu_seconds_of(pid_); }

 private:
  pid_t pid_ = 0;
  std::string mount_point_;
};

double own_cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Adds the time of a step to its sum.
class Step {
 public:
  template <class F>
  auto run(F&& work) {
    const auto start = Clock::now();
    struct Add {
      Step& step;
      Clock::time_point start;
      ~Add() { step.sum_ += Clock::now() - start; }
    } add{*this, start};
    return work();
  }
  [[nodiscard]] double ns_per_page(std::uint64_t pages) const {
    return std::chrono::duration<double, std::nano>(sum_).count() / static_cast<double>(pages);
  }

 private:
  Clock::duration sum_{};
};

/// The alternative to PinPipe: splice(2) fills a pipe from the file, without a mapping.
class SplicePipe {
 public:
  explicit SplicePipe(std::uint64_t pages) : bytes_(pages * kPageSize) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
      throw std::system_error(errno, std::generic_category(), "pipe2");
    }
    read_end_.reset(ends[0]);
    write_end_.reset(ends[1]);
    null_.reset(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (!null_.valid() || ::fcntl(write_end_.get(), F_SETPIPE_SZ, static_cast<int>(bytes_)) < 0) {
      throw std::system_error(errno, std::generic_category(), "a pipe for a batch");
    }
  }
  void pin(int fd, std::uint64_t byte_offset) {
    auto offset = static_cast<off_t>(byte_offset);
    while (held_ < bytes_) {
      move(::splice(fd, &offset, write_end_.get(), nullptr, bytes_ - held_, SPLICE_F_NONBLOCK),
           [this](std::uint64_t bytes) { held_ += bytes; });
    }
  }
  void release() {
    while (held_ > 0) {
      move(::splice(read_end_.get(), nullptr, null_.get(), nullptr, held_, SPLICE_F_NONBLOCK),
           [this](std::uint64_t bytes) { held_ -= bytes; });
    }
  }

 private:
  template <class Count>
  static void move(ssize_t bytes, Count&& count) {
    if (bytes > 0) {
      count(static_cast<std::uint64_t>(bytes));
    } else if (bytes == 0 || errno != EINTR) {
      throw std::runtime_error("pages cannot be spliced");
    }
  }
  std::uint64_t bytes_;
  std::uint64_t held_ = 0;
  UniqueFd read_end_;
  UniqueFd write_end_;
  UniqueFd null_;
};

void measure(const std::string& mount_point, const Variant& variant, std::uint64_t mib) {
  Server server(mount_point, variant);
  BalloonFile file(mount_point, variant.pages);
  if (variant.pages == PageChoice::automatic && !file.has_large_pages()) {
    throw std::runtime_error("no large pages: " + file.why_small());
  }
  FrameLookup lookup = FrameLookup::open().value();
  const std::uint64_t batch_pages = file.batch_pages();
  const std::uint64_t batches = mib * 256 / batch_pages;
  const std::uint64_t group_size = std::max<std::uint64_t>(variant.place_group / batch_pages, 1);
  std::vector<PinPipe> pipes;
  for (std::uint64_t i = 0; i < group_size; ++i) {
    pipes.emplace_back(batch_pages);
  }
  SplicePipe splice_pipe(batch_pages);
  std::vector<GuestFrame> frames(batch_pages);
  std::vector<GuestFrame> sorted;
  std::vector<FrameRange> ranges;
  std::uint64_t range_count = 0;
  PageWindow window(file, batch_pages);
  const auto extent = [=](std::uint64_t batch) {
    return Extent{FilePage(batch * batch_pages), batch_pages};
  };
  constexpr std::uint64_t kAhead = 2;

  Step prefetch;
  Step map;
  Step pin;
  Step look;
  Step sort;
  Step place;
  Step release;
  const double cpu_before = own_cpu_seconds();
  const double server_before = server.cpu_seconds();
  const auto start = Clock::now();
  if (variant.prefetch) {
    for (std::uint64_t i = 0; i < kAhead; ++i) {
      prefetch.run([&] { file.prefetch(extent(i), true); });
    }
  }
  for (std::uint64_t i = 0; i < batches; ++i) {
    if (variant.prefetch && i + kAhead < batches) {
      prefetch.run([&] { file.prefetch(extent(i + kAhead), true); });
    } else if (!variant.prefetch) {
      prefetch.run([&] { file.prefetch(extent(i), true); });
    }
    PinPipe& pipe = pipes.at(i % group_size);
    if (variant.splice_file) {
      pin.run([&] { splice_pipe.pin(file.fd(), extent(i).first.byte_offset()); });
    }
    map.run([&] {
      if (!window.show(extent(i)) || (variant.splice_file && window.populate() != 0)) {
        throw std::runtime_error("pages cannot be mapped");
      }
      if (variant.touch) {
        for (std::uint64_t page = 0; page < batch_pages; page += 16) {
          [[maybe_unused]] const char byte =
              static_cast<const volatile char*>(window.address())[page * kPageSize];
        }
      }
    });
    if (!variant.splice_file &&
        pin.run([&] { return pipe.pin(window.address(), batch_pages); }) != 0) {
      throw std::runtime_error("pages cannot be pinned");
    }
    if (look.run([&] { return lookup.look(window.address(), frames); }) != FrameLookup::Look::all) {
      throw std::runtime_error("no frame numbers");
    }
    sort.run([&] {
      sorted.assign(frames.begin(), frames.end());
      coalesce(sorted, ranges);
    });
    range_count += ranges.size();
    map.run([&] { window.hide(); });
    if (variant.place_group == 0) {
      release.run([&] { variant.splice_file ? splice_pipe.release() : pipe.release(); });
    } else if ((i + 1) % group_size == 0 || i + 1 == batches) {
      const std::uint64_t first = i / group_size * group_size;
      place.run([&] {
        file.place_for_reclaim({extent(first).first, (i + 1 - first) * batch_pages});
      });
      release.run([&] {
        for (PinPipe& held : pipes) {
          held.release();
        }
      });
    }
  }
  const double wall = std::chrono::duration<double>(Clock::now() - start).count();
  const std::uint64_t pages = batches * batch_pages;
  const auto per_page = [&](double seconds) { return seconds * 1e9 / static_cast<double>(pages); };
  std::printf(
      "variant=%s mib_per_s=%.1f wall_ns=%.0f inflater_cpu_ns=%.0f server_cpu_ns=%.0f "
      "prefetch_ns=%.0f map_ns=%.0f pin_ns=%.0f look_ns=%.0f sort_ns=%.0f place_ns=%.0f "
      "release_ns=%.0f pages_per_range=%.1f\n",
      variant.name, static_cast<double>(pages) / 256 / wall, per_page(wall),
      per_page(own_cpu_seconds() - cpu_before), per_page(server.cpu_seconds() - server_before),
      prefetch.ns_per_page(pages), map.ns_per_page(pages), pin.ns_per_page(pages),
      look.ns_per_page(pages), sort.ns_per_page(pages), place.ns_per_page(pages),
      release.ns_per_page(pages), static_cast<double>(pages) / static_cast<double>(range_count));
  std::fflush(stdout);
}

}  // namespace
}  // namespace fileballoon::guest

int main(int argc, char** argv) {
  using namespace fileballoon::guest;
  const std::uint64_t mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 256;
  if (mib == 0) {
    std::fprintf(stderr, "usage: guest_fill [MIB [VARIANT]]\n");
    return 2;
  }
  std::string mount_point = "/tmp/guest_fill.XXXXXX";
  ::mkdir("/tmp", 01777);
  if (::mkdtemp(mount_point.data()) == nullptr) {
    std::perror("mkdtemp");
    return EXIT_FAILURE;
  }
  int status = EXIT_SUCCESS;
  try {
    for (const Variant& variant : kVariants) {
      if (argc > 2 && std::strcmp(argv[2], variant.name) != 0) {
        continue;
      }
      measure(mount_point, variant, mib);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "guest_fill: %s\n", error.what());
    status = EXIT_FAILURE;
  }
  ::rmdir(mount_point.c_str());
  return status;
}
