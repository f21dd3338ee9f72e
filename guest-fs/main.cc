// balloonfs: see docs/man/balloonfs.8.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <vector>

#include "guest-fs/guest_memory.h"
#include "guest-fs/log.h"
#include "guest-fs/options.h"
#include "guest-fs/supervisor.h"

int main(int argc, char** argv) {
  using namespace fileballoon;
  using namespace fileballoon::guest;
  try {
    std::vector<FrameRange> ranges = parse_iomem(read_file("/proc/iomem"));
    Bytes ram = Bytes::pages(total_frames(ranges));
    if (ram.count() == 0) {  // the kernel hides addresses (no CAP_SYS_ADMIN)
      ranges.clear();
      ram = parse_meminfo(read_file("/proc/meminfo")).total;
    }
    const std::vector<std::string_view> arguments(argv + 1, argv + argc);
    const Result<Options> options = parse_options(arguments, ram);
    if (!options) {
      log_error(options.error().message);
      return EXIT_FAILURE;
    }
    if (options->help) {
      std::fputs(usage().data(), stdout);
      return EXIT_SUCCESS;
    }
    if (options->version) {
      std::puts("balloonfs " FILEBALLOON_VERSION);
      return EXIT_SUCCESS;
    }
    return run_agent(*options, ram, std::move(ranges));
  } catch (const std::exception& error) {
    log_error(error.what());
    return EXIT_FAILURE;
  }
}
