// GuestMemory: the guest kernel's own numbers that steer the balloon. Reading them is cheap enough
// for every batch (sysinfo(2)) or is done once a while (/proc files). Files come from a root folder
// that tests replace. Single-threaded.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fileballoon/frame.h"
#include "guest-fs/reclaim/kernel_file.h"  // read_file(): whose text is parsed here

namespace fileballoon::guest {

/// MemFree, from sysinfo(2): two orders of magnitude cheaper than reading /proc/meminfo.
[[nodiscard]] Bytes free_memory();

/// CPU time that all of the guest has used, of all CPUs, seconds since some time before the boot:
/// exact where the kernel keeps idle time exactly, which it does on CPUs that stop their tick.
[[nodiscard]] double busy_seconds();

/// The fields of /proc/meminfo that are reported to the host.
struct MemoryInfo {
  Bytes total;
  Bytes free;
  Bytes available;
  Bytes cached;
};
/// `text`: the content of /proc/meminfo.
[[nodiscard]] MemoryInfo parse_meminfo(const std::string& text);

/// What the kernel keeps free by itself.
struct KernelMarks {
  /// Of each zone the high watermark plus the largest lowmem reserve, as in the kernel's
  /// calculate_totalreserve_pages(): reclaim that was woken ends here.
  Bytes reserve;
  /// The same with the low watermarks: an allocation that goes below wakes kswapd.
  Bytes reclaims_below;
};
/// `text`: the content of /proc/zoneinfo.
[[nodiscard]] KernelMarks kernel_marks(const std::string& text);

/// Free pages in the lists of single CPUs beyond what the kernel keeps there in any case. They are
/// not counted in MemFree, and since Linux 6.7, which lets these lists grow with what a program
/// frees, they can be an eighth of RAM (MIN_PERCPU_PAGELIST_HIGH_FRACTION in mm/page_alloc.c).
/// `text`: the content of /proc/zoneinfo.
[[nodiscard]] std::uint64_t spare_in_cpu_lists(const std::string& text);

/// All free pages in those lists, by number of the CPU. `text`: the content of /proc/zoneinfo.
[[nodiscard]] std::vector<std::uint64_t> pages_in_cpu_lists(const std::string& text);

/// Has the kernel shorten those lists as it does by itself once a second (decay_pcp_high()): by an
/// eighth of their length, never below their least size. Returns when each CPU has done so.
void shorten_cpu_lists();

/// What the balloon leaves free beyond the kernel's reserve: 1/32 of RAM, at least 8 MiB and at
/// most 64 MiB. A burst of allocations between two looks, and what a program reads once before it
/// has become cold (5 s, of some MiB a second), does not reach the watermark and take the balloon.
[[nodiscard]] Bytes reserve_margin(Bytes ram);

/// Free blocks of at least `pages` (a power of two), each counted as often as it holds that many
/// pages; without ZONE_DMA, which is not for page cache. `text`: the content of /proc/buddyinfo.
[[nodiscard]] std::uint64_t free_blocks(const std::string& text, std::uint64_t pages);

/// "System RAM" of /proc/iomem, in whole pages; empty where the kernel hides addresses.
[[nodiscard]] std::vector<FrameRange> parse_iomem(const std::string& text);

/// PSI of memory, share of the last 10 s in hundredths of a percent; nothing without CONFIG_PSI.
struct Pressure {
  std::uint64_t some_avg10_centi = 0;
  std::uint64_t full_avg10_centi = 0;
};
[[nodiscard]] std::optional<Pressure> parse_pressure(const std::string& text);

/// The value of `name` in /proc/vmstat.
[[nodiscard]] std::optional<std::uint64_t> find_vmstat(const std::string& text,
                                                       const std::string& name);

}  // namespace fileballoon::guest
