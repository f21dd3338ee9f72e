// guest_fill_vm: runs guest_fill in a stock guest and shows its lines as a table and as JSON.
#include <CLI/CLI.hpp>
#include <iostream>
#include <sstream>

#include "tests/vm/kit/vm.h"

int main(int argc, char** argv) {
  using namespace fileballoon;
  CLI::App app("Cost of each step of inflating, per page, in a stock guest.");
  unsigned mib = 256;
  std::string variant;
  app.add_option("--mib", mib, "how much each variant fills")->capture_default_str();
  app.add_option("--variant", variant, "only this one");
  CLI11_PARSE(app, argc, argv);
  if (const auto reason = vmkit::why_no_guest()) {
    std::cerr << "guest_fill_vm: " << *reason << '\n';
    return 1;
  }
  try {
    vmkit::VmOptions options;
    options.initramfs.files = {{"/bin/guest_fill", FILEBALLOON_GUEST_FILL, true}};
    options.extra_cmdline = "nokaslr";  // so that a profiler outside can name addresses
    vmkit::Vm vm(options);
    std::cout << "accelerator: " << vmkit::accelerator().name << std::endl;
    vm.guest().touch_and_free(Bytes::mib(700));
    std::cout << vm.guest().shell(
        "/bin/guest_fill " + std::to_string(mib) + " " + variant + " 2>&1",
        std::chrono::seconds(300));
  } catch (const std::exception& error) {
    std::cerr << "guest_fill_vm: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
