// The kernel's own swap as the pager's peer: the same pages, paged out with MADV_PAGEOUT to a swap
// file on the same disk and faulted back in. The swap file exists only while run() does: a
// supervising process takes it out of use and removes it even if the measuring one is killed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fileballoon/bytes.h"
#include "fileballoon/result.h"

namespace fileballoon::bench {

struct PagingResult {
  double out_seconds = 0;            ///< to page out all of the memory
  double out_cpu_seconds = 0;        ///< CPU time of the thread that did it
  std::vector<std::uint64_t> in_ns;  ///< one random page-in each
  double sequential_seconds = 0;     ///< to read all of the memory in order, page-ins included
};

/// Pages that random page-ins touch: one in 16, in random order, so that no read-ahead helps.
[[nodiscard]] std::vector<std::uint64_t> random_pages(std::uint64_t pages, std::uint64_t seed);

/// Times the first touch of each page of `order`, divided among so many threads at once. `base` is
/// the memory's start.
[[nodiscard]] std::vector<std::uint64_t> time_touches(const std::byte* base,
                                                      const std::vector<std::uint64_t>& order,
                                                      unsigned threads);

/// One touch of every page in order.
void touch_all(const std::byte* base, std::uint64_t pages);

/// `directory`: where the swap file is made; on the disk to compare with. Fails, saying why, where
/// swapon(2) is not allowed.
[[nodiscard]] Result<PagingResult> run_kernel_swap(const std::string& directory, Bytes size,
                                                   unsigned threads);

}  // namespace fileballoon::bench
