// tiny_vmm: what a VMM written in C++ does to use libfileballoon-host. It has 256 MiB of guest RAM,
// private or (--shared) a memfd as other processes could map it, and two "vCPU" threads that keep
// their data in it; its "guest" frees (and zeroes) half of it, the VMM gives that half back to the
// host, and the vCPUs then use it again. Exit status 1 where memory was not freed or a byte was
// lost.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "uffd/host_balloon.h"

namespace {

using namespace fileballoon;

constexpr std::size_t kRam = 256UL << 20;
constexpr std::size_t kHalf = kRam / 2;

double resident_mib() {
  std::ifstream in("/proc/self/statm");
  double size = 0;
  double resident = 0;
  in >> size >> resident;
  return resident * kPageSize / (1 << 20);
}

// A vCPU: fills `size` bytes with its pattern, and says how many pages do not hold it.
void fill(char* ram, std::size_t size, std::uint64_t seed) {
  for (std::size_t at = 0; at < size; at += kPageSize) {
    const std::uint64_t value = seed + at;
    std::memcpy(ram + at, &value, sizeof value);
  }
}
std::size_t wrong(const char* ram, std::size_t size, std::uint64_t seed) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < size; at += kPageSize) {
    std::uint64_t value = 0;
    std::memcpy(&value, ram + at, sizeof value);
    count += value != seed + at ? 1 : 0;
  }
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  HostBalloon::Options options;
  options.refaults = RefaultMode::engine;
  options.lazy = argc == 2 && std::string(argv[1]) == "--lazy";
  const bool shared = argc == 2 && std::string(argv[1]) == "--shared";
  if (argc > 1 && !options.lazy && !shared) {
    std::fprintf(stderr,
                 "usage: tiny_vmm [--lazy | --shared]\n"
                 "  --lazy: MADV_FREE in place of MADV_DONTNEED; --shared: RAM in a memfd\n");
    return 2;
  }
  const int memfd = shared ? ::memfd_create("guest-ram", MFD_CLOEXEC) : -1;
  if (shared && (memfd < 0 || ::ftruncate(memfd, kRam) != 0)) {
    std::perror("memfd");
    return 1;
  }
  const int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  auto* ram = static_cast<char*>(
      ::mmap(nullptr, kRam, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, memfd, 0));
  if (ram == MAP_FAILED) {
    std::perror("mmap");
    return 1;
  }
  ::madvise(ram, kRam, MADV_NOHUGEPAGE);
  const HostBalloon::Region region{ram, Bytes(kRam), memfd};
  auto balloon = HostBalloon::create({&region, 1}, options);
  if (balloon.has_error()) {
    std::fprintf(stderr, "tiny_vmm: %s\n", balloon.error().message.c_str());
    return 1;
  }

  fill(ram, kRam, 1);
  const double full = resident_mib();
  std::memset(ram + kHalf, 0, kHalf);  // the guest frees its upper half

  // One vCPU goes on writing to its half while the VMM gives the other away, and tries this one
  // too.
  std::atomic<bool> stop{false};
  std::thread vcpu([&] {
    while (!stop) {
      fill(ram, kHalf, 1);
    }
  });
  const DiscardOutcome given = (*balloon)->give(0, HostOffset(0), Bytes(kRam));
  stop = true;
  vcpu.join();
  const double after = resident_mib();
  std::printf("gave %u pages (%u held data); resident %.0f MiB -> %.0f MiB\n", given.discarded,
              given.not_zero, full, after);

  std::thread first([&] { fill(ram + kHalf, kHalf / 2, 2); });
  std::thread second([&] { fill(ram + kHalf + kHalf / 2, kHalf / 2, 3); });
  first.join();
  second.join();
  const EngineStats stats = (*balloon)->stats();
  std::printf("%lu faults brought %lu pages back; p50 %ld ns from message to answer\n",
              stats.missing_faults, stats.pages_filled, static_cast<long>(stats.p50.count()));
  const std::size_t lost = wrong(ram, kHalf, 1) + wrong(ram + kHalf, kHalf / 2, 2) +
                           wrong(ram + kHalf + kHalf / 2, kHalf / 2, 3);
  const bool freed = given.discarded == kHalf / kPageSize &&
                     (options.lazy || after < full - 0.95 * kHalf / (1 << 20));
  std::printf("%zu pages lost; %s\n", lost, lost == 0 && freed ? "good" : "BAD");
  balloon->reset();
  ::munmap(ram, kRam);
  return lost == 0 && freed ? 0 : 1;
}
