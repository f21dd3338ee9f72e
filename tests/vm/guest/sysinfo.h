// What the guest's kernel says about itself: memory, counters of reclaim, CPU time. Read from /proc
// as the kernel prints it; units as in the names. Used by the server and by nothing else.
#pragma once

#include <sys/types.h>

#include <boost/json/object.hpp>
#include <string>

namespace fileballoon::guest {

/// The text of a file, at most 1 MiB. Throws std::system_error naming it.
[[nodiscard]] std::string read_text(const std::string& path);
/// Writes `text` in one call. Throws std::system_error naming the file.
void write_text(const std::string& path, const std::string& text);

/// /proc/meminfo, in KiB, by its own names.
[[nodiscard]] boost::json::object meminfo_kib();
/// /proc/vmstat by its own names.
[[nodiscard]] boost::json::object vmstat();
/// Seconds since boot of the whole guest: `busy_s` (all CPUs, everything but idle and iowait),
/// `idle_s`, `cpus`, `uptime_s`. Idle time is exact on a tickless kernel where the user and system
/// ticks are samples, so busy is uptime × cpus − idle.
[[nodiscard]] boost::json::object cpu();
/// `cpu_s` and `rss_kib`, `processes`, `context_switches`, summed over all processes whose name
/// (comm) starts with `name`.
[[nodiscard]] boost::json::object processes(const std::string& name);

}  // namespace fileballoon::guest
