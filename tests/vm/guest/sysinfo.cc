#include "tests/vm/guest/sysinfo.h"

#include <dirent.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <sstream>
#include <system_error>

namespace fileballoon::guest {
namespace json = boost::json;
namespace {

constexpr std::size_t kMaxText = std::size_t{1} << 20;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

double seconds_since_boot() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// Sum over the numbers of all threads of a process: entries of /proc/PID/task.
template <class Add>
void for_each_thread(const std::string& dir, const Add& add) {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(opendir((dir + "/task").c_str()), closedir);
  while (const dirent* entry = tasks ? readdir(tasks.get()) : nullptr) {
    if (entry->d_name[0] != '.') add(dir + "/task/" + entry->d_name);
  }
}

// Adds one process to the sums; a process that is gone by now is nothing. CPU time from schedstat,
// in nanoseconds: the ticks of /proc/PID/stat are 10 ms, more than an agent at rest uses in a
// second.
void add_process(const std::string& dir, const std::string& name, double& cpu_s,
                 std::uint64_t& resident_kib, std::uint64_t& switches, unsigned& count) {
  try {
    const std::string stat = read_text(dir + "/stat");
    const auto open = stat.find('(');
    if (open == std::string::npos || stat.compare(open + 1, name.size(), name) != 0) return;
    for_each_thread(dir, [&](const std::string& thread) {
      cpu_s += std::stod(read_text(thread + "/schedstat")) / 1e9;
      std::istringstream status(read_text(thread + "/status"));
      std::string key;
      std::string skipped;
      while (status >> key) {
        std::uint64_t value = 0;
        if (key.ends_with("voluntary_ctxt_switches:") && status >> value) switches += value;
        status.clear();
        std::getline(status, skipped);
      }
    });
    // Pss: what its processes share counts once.
    std::istringstream rollup(read_text(dir + "/smaps_rollup"));
    for (std::string line; std::getline(rollup, line);) {
      if (line.starts_with("Pss:")) resident_kib += std::stoull(line.substr(4));
    }
    ++count;
  } catch (const std::system_error&) {
  }
}

}  // namespace

std::string read_text(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open " + path);
  std::string text;
  char chunk[16384];
  ssize_t n = 0;
  while (text.size() < kMaxText && (n = read(fd, chunk, sizeof chunk)) > 0) {
    text.append(chunk, static_cast<std::size_t>(n));
  }
  const int error = errno;
  close(fd);
  errno = error;
  if (n < 0) fail("read " + path);
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) fail("open " + path);
  const ssize_t n = write(fd, text.data(), text.size());
  const int error = errno;
  close(fd);
  errno = error;
  if (n != static_cast<ssize_t>(text.size())) fail("write " + path);
}

json::object meminfo_kib() {
  json::object out;
  std::istringstream lines(read_text("/proc/meminfo"));
  std::string line;
  while (std::getline(lines, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    out[line.substr(0, colon)] = std::stoull(line.substr(colon + 1));
  }
  return out;
}

json::object vmstat() {
  json::object out;
  std::istringstream lines(read_text("/proc/vmstat"));
  std::string key;
  std::uint64_t value = 0;
  while (lines >> key >> value) out[key] = value;
  return out;
}

json::object cpu() {
  std::istringstream words(read_text("/proc/stat"));
  std::string name;
  std::uint64_t user = 0;
  std::uint64_t nice = 0;
  std::uint64_t system = 0;
  std::uint64_t idle = 0;
  std::uint64_t iowait = 0;
  words >> name >> user >> nice >> system >> idle >> iowait;
  const double uptime = seconds_since_boot();
  const auto cpus = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  const double idle_s =
      static_cast<double>(idle + iowait) / static_cast<double>(sysconf(_SC_CLK_TCK));
  return {
      {"busy_s", uptime * cpus - idle_s}, {"idle_s", idle_s}, {"cpus", cpus}, {"uptime_s", uptime}};
}

json::object processes(const std::string& name) {
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(opendir("/proc"), closedir);
  double cpu_s = 0;
  std::uint64_t resident_kib = 0;
  std::uint64_t switches = 0;
  unsigned count = 0;
  while (const dirent* entry = proc ? readdir(proc.get()) : nullptr) {
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    add_process(std::string("/proc/") + entry->d_name, name, cpu_s, resident_kib, switches, count);
  }
  return {{"cpu_s", cpu_s},
          {"resident_kib", resident_kib},
          {"context_switches", switches},
          {"processes", count}};
}

}  // namespace fileballoon::guest
