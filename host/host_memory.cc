#include "host/host_memory.h"

#include <charconv>
#include <fstream>
#include <sstream>
#include <string_view>

namespace fileballoon::host {
namespace {

/// The number after `key` in `text`; nothing where there is none.
template <class T>
std::optional<T> number_after(std::string_view text, std::string_view key) {
  const std::size_t at = text.find(key);
  if (at == std::string_view::npos) {
    return std::nullopt;
  }
  text.remove_prefix(at + key.size());
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

/// avg10 of the line "some …" or "full …" of a pressure file.
double psi_of(const std::string& text, std::string_view kind) {
  const std::size_t line = text.find(kind);
  return line == std::string::npos
             ? 0.0
             : number_after<double>(std::string_view(text).substr(line), "avg10=").value_or(0);
}

void lower_to(std::optional<Bytes>& limit, const std::optional<std::string>& file) {
  if (!file) {
    return;
  }
  if (const auto bytes = number_after<std::uint64_t>(*file, "")) {  // "max" is no number
    limit = limit ? std::min(*limit, Bytes(*bytes)) : Bytes(*bytes);
  }
}

}  // namespace

std::optional<std::string> HostMemory::slurp(const std::string& path) const {
  std::ifstream in(root_ + path);
  if (!in) {
    return std::nullopt;
  }
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

Result<HostReport> HostMemory::read() const {
  const auto meminfo = slurp("/proc/meminfo");
  const auto available =
      meminfo ? number_after<std::uint64_t>(*meminfo, "MemAvailable:") : std::nullopt;
  if (!available) {
    return Error{"cannot read MemAvailable in " + root_ + "/proc/meminfo"};
  }
  HostReport report;
  report.available = Bytes(*available * 1024);
  if (const auto psi = slurp("/proc/pressure/memory")) {
    report.psi_some = psi_of(*psi, "some");
    report.psi_full = psi_of(*psi, "full");
  }
  return report;
}

std::optional<CgroupMemory> HostMemory::cgroup_of(pid_t pid) const {
  // cgroups(7): the line of the unified hierarchy has the id 0 and no controllers.
  const auto table = slurp("/proc/" + std::to_string(pid) + "/cgroup");
  const std::size_t line = table ? table->find("0::/") : std::string::npos;
  if (line == std::string::npos) {
    return std::nullopt;
  }
  std::string group = table->substr(line + 3, table->find('\n', line) - line - 3);
  const std::string mount = "/sys/fs/cgroup";
  const auto current = slurp(mount + group + "/memory.current");
  const auto used = current ? number_after<std::uint64_t>(*current, "") : std::nullopt;
  if (!used) {
    return std::nullopt;  // the root group, or no memory controller here
  }
  CgroupMemory memory;
  memory.current = Bytes(*used);
  if (const auto psi = slurp(mount + group + "/memory.pressure")) {
    memory.psi_some = psi_of(*psi, "some");
    memory.psi_full = psi_of(*psi, "full");
  }
  while (group.size() > 1) {
    lower_to(memory.limit, slurp(mount + group + "/memory.high"));
    lower_to(memory.limit, slurp(mount + group + "/memory.max"));
    group.resize(std::max<std::size_t>(group.rfind('/'), 1));
  }
  return memory;
}

std::optional<Bytes> ceiling_in(const CgroupMemory& cgroup, Bytes footprint) {
  if (!cgroup.limit) {
    return std::nullopt;
  }
  const Bytes others = cgroup.current - footprint;
  return (*cgroup.limit - others).page_floor();
}

}  // namespace fileballoon::host
