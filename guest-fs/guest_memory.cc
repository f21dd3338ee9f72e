#include "guest-fs/guest_memory.h"

#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace fileballoon::guest {
namespace {

/// CONFIG_NR_CPUS of distributions; a number beyond it is no CPU.
constexpr std::uint64_t kMostCpus = 8192;

/// Of "protection: (0, 958, 958, 958)": pages kept from allocations that could use other zones.
std::uint64_t largest_number(const char* text) {
  std::uint64_t largest = 0;
  while (*text != '\0') {
    if (*text >= '0' && *text <= '9') {
      char* end = nullptr;
      largest = std::max<std::uint64_t>(largest, std::strtoull(text, &end, 10));
      text = end;
    } else {
      ++text;
    }
  }
  return largest;
}

}  // namespace

Bytes free_memory() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) {
    return Bytes(0);
  }
  return Bytes(static_cast<std::uint64_t>(info.freeram) * info.mem_unit);
}

double busy_seconds() {
  double up = 0;
  double idle = 0;
  (void)std::sscanf(read_file("/proc/uptime").c_str(), "%lf %lf", &up, &idle);
  return static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN)) * up - idle;
}

MemoryInfo parse_meminfo(const std::string& text) {
  MemoryInfo info;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::array<char, 64> key{};
    std::uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "%63[^:]: %" SCNu64, key.data(), &kib) != 2) {
      continue;
    }
    const std::string name = key.data();
    const Bytes value(kib * 1024);
    if (name == "MemTotal") {
      info.total = value;
    } else if (name == "MemFree") {
      info.free = value;
    } else if (name == "MemAvailable") {
      info.available = value;
    } else if (name == "Cached") {
      info.cached = value;
    }
  }
  return info;
}

KernelMarks kernel_marks(const std::string& text) {
  std::uint64_t reserve = 0;
  std::uint64_t wakes = 0;
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    const auto start = line.find_first_not_of(' ');
    if (start == std::string::npos) {
      continue;
    }
    const char* at = line.c_str() + start;
    std::uint64_t value = 0;
    if (line.starts_with("Node ")) {
      low = high = 0;
    } else if (std::sscanf(at, "low %" SCNu64, &value) == 1) {
      low = value;
    } else if (std::sscanf(at, "high %" SCNu64, &value) == 1) {
      high = value;
    } else if (line.compare(start, 11, "protection:") == 0) {
      const std::uint64_t kept = largest_number(at);
      wakes += low + kept;
      reserve += high + kept;
      low = high = 0;
    }
  }
  return {Bytes::pages(reserve), Bytes::pages(wakes)};
}

std::uint64_t spare_in_cpu_lists(const std::string& text) {
  std::uint64_t sum = 0;
  std::uint64_t count = 0;
  std::uint64_t least = 0;
  std::istringstream lines(text);
  std::string line;
  const auto end_list = [&] {
    sum += count > least ? count - least : 0;
    count = 0;
  };
  while (std::getline(lines, line)) {
    // "    cpu: 0" is followed by "              count: 63", "batch:" and "high_min:".
    std::uint64_t value = 0;
    if (std::sscanf(line.c_str(), " count: %" SCNu64, &value) == 1) {
      end_list();
      count = value;
    } else if (std::sscanf(line.c_str(), " batch: %" SCNu64, &value) == 1) {
      least = 4 * value;  // a list is never shorter (zone_highsize())
    } else if (std::sscanf(line.c_str(), " high_min: %" SCNu64, &value) == 1) {
      least = value;
    }
  }
  end_list();
  return sum;
}

std::vector<std::uint64_t> pages_in_cpu_lists(const std::string& text) {
  std::vector<std::uint64_t> pages;
  std::size_t cpu = 0;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::uint64_t value = 0;
    if (std::sscanf(line.c_str(), " cpu: %" SCNu64, &value) == 1) {
      cpu = value;
      pages.resize(cpu < kMostCpus ? std::max(pages.size(), cpu + 1) : pages.size());
    } else if (std::sscanf(line.c_str(), " count: %" SCNu64, &value) == 1 && cpu < pages.size()) {
      pages[cpu] += value;
    }
  }
  return pages;
}

void shorten_cpu_lists() {
  // Reading this file folds the statistics of each CPU, and ages its lists with them
  // (vmstat_refresh() and refresh_cpu_vm_stats() in mm/vmstat.c; root only).
  (void)read_file("/proc/sys/vm/stat_refresh");
}

Bytes reserve_margin(Bytes ram) {
  const Bytes share(ram.count() / 32);
  return std::clamp(share, Bytes::mib(8), Bytes::mib(64));
}

std::uint64_t free_blocks(const std::string& text, std::uint64_t pages) {
  std::uint64_t sum = 0;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    // "Node 0, zone    DMA32      2      2 …": free blocks of 1, 2, 4, … pages.
    std::istringstream words(line);
    std::string node;
    std::string number;
    std::string word;
    std::string zone;
    words >> node >> number >> word >> zone;
    if (node != "Node" || zone == "DMA") {
      continue;
    }
    std::uint64_t count = 0;
    for (std::uint64_t size = 1; words >> count; size *= 2) {
      sum += size >= pages ? count * (size / pages) : 0;
    }
  }
  return sum;
}

std::vector<FrameRange> parse_iomem(const std::string& text) {
  std::vector<FrameRange> ranges;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::array<char, 64> name{};
    // Nested resources ("Kernel code") are indented; a leading space is none of ours.
    if (line.starts_with(' ') || std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " : %63[^\n]",
                                             &first, &last, name.data()) != 3) {
      continue;
    }
    if (std::string(name.data()) != "System RAM" || last <= first) {
      continue;
    }
    const std::uint64_t begin_page = (first + kPageSize - 1) / kPageSize;
    const std::uint64_t end_page = (last + 1) / kPageSize;
    if (end_page > begin_page) {
      ranges.push_back({GuestFrame(begin_page), end_page - begin_page});
    }
  }
  return ranges;
}

std::optional<Pressure> parse_pressure(const std::string& text) {
  Pressure pressure;
  double some = 0;
  double full = 0;
  if (std::sscanf(text.c_str(), "some avg10=%lf", &some) != 1) {
    return std::nullopt;
  }
  const auto second = text.find("full avg10=");
  if (second != std::string::npos) {
    std::sscanf(text.c_str() + second, "full avg10=%lf", &full);
  }
  pressure.some_avg10_centi = static_cast<std::uint64_t>(some * 100 + 0.5);
  pressure.full_avg10_centi = static_cast<std::uint64_t>(full * 100 + 0.5);
  return pressure;
}

std::optional<std::uint64_t> find_vmstat(const std::string& text, const std::string& name) {
  const std::string key = name + " ";
  std::size_t at = text.find(key);
  while (at != std::string::npos && at != 0 && text[at - 1] != '\n') {
    at = text.find(key, at + 1);
  }
  if (at == std::string::npos) {
    return std::nullopt;
  }
  return std::strtoull(text.c_str() + at + key.size(), nullptr, 10);
}

}  // namespace fileballoon::guest
