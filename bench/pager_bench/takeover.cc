// pager_takeover: what a guest whose memory is half paged out notices of a daemon that is killed. A
// stand-in for a VMM touches its memory over and over; once it is left alone, once the process that
// attached to it and steers its paging gets a SIGKILL in the middle, and another takes over at
// once. Measured: how long the take-over takes, and the longest touch in each case.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <sstream>
#include <thread>

#include "bench/report.h"
#include "tests/integration/uffd_stand_in.h"
#include "uffd/faultd/client.h"
#include "uffd/pager/paging_client.h"

namespace fileballoon::bench {
namespace {

using Clock = std::chrono::steady_clock;
using faultd::FaultdClient;
using faultd::PagingClient;

constexpr Bytes kRam = Bytes::mib(256);
constexpr auto kTouching = std::chrono::seconds(3);

struct Setting {
  std::string socket;
  std::string directory;
};

FaultdClient::Options client_options(const Setting& setting) {
  FaultdClient::Options options;
  options.socket = setting.socket;
  options.program = FILEBALLOON_FAULTD;
  return options;
}

/// The daemon's part: attaches, has half of the RAM paged out, and stays. Returns its pid.
pid_t start_daemon(pid_t vmm, const Setting& setting) {
  const pid_t daemon = ::fork();
  if (daemon != 0) {
    return daemon;
  }
  const GuestRam ram = GuestRam::open(vmm).value();
  const auto client = FaultdClient::attach(ram, client_options(setting)).value();
  auto pager = PagingClient::connect(setting.socket).value();
  PagingOptions paging;
  paging.vm = "stand-in";
  paging.path = setting.directory;
  const bool ok =
      pager.start(paging).has_value() && pager.set_goal(Bytes(kRam.count() / 2)).has_value();
  if (ok) {
    ::pause();  // until it is killed: no signal has a handler that would return
  }
  ::_exit(1);
}

void wait_for_half(const Setting& setting) {
  const auto deadline = Clock::now() + std::chrono::seconds(60);
  while (Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    auto pager = PagingClient::connect(setting.socket);
    const auto status = pager ? pager->status() : Result<PagingClient::Status>(pager.error());
    if (status && status->service.footprint <= Bytes(kRam.count() / 2)) {
      return;
    }
  }
  throw std::runtime_error("half of the memory is not paged out after a minute");
}

Row measure(bool kill_it) {
  testing::StandIn vmm({"--quiet", "--mib", std::to_string(kRam.count() >> 20)});
  const std::string pages = std::to_string(kRam.whole_pages());
  std::string pattern = (std::filesystem::current_path() / "takeover.XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp " + pattern);
  }
  const Setting setting{pattern + "/keeper", pattern};
  (void)vmm.ask("fill 0 " + pages);
  const pid_t daemon = start_daemon(vmm.pid(), setting);
  wait_for_half(setting);

  vmm.send("touch " + pages + " " + std::to_string(std::chrono::milliseconds(kTouching).count()));
  std::this_thread::sleep_for(kTouching / 3);
  Row row{{"daemon", kill_it ? "killed" : "left alone"}};
  row["takeover_ms"] = nullptr;
  if (kill_it) {
    const auto start = Clock::now();
    ::kill(daemon, SIGKILL);
    const GuestRam ram = GuestRam::open(vmm.pid()).value();
    const auto client = FaultdClient::attach(ram, client_options(setting)).value();
    auto pager = PagingClient::connect(setting.socket).value();
    const auto status = pager.status();
    row["takeover_ms"] = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    row["found_paged_mib"] = status ? Bytes::pages(status->service.pager.paged_pages).as_mib() : 0;
    row["new_keepers"] = client->restarts();  // none: the one that runs was found
  }
  std::istringstream answer(vmm.read_line());
  std::uint64_t touches = 0;
  std::uint64_t faults = 0;
  double longest_ns = 0;
  answer >> touches >> faults >> longest_ns;
  row["touches"] = touches;
  row["faults"] = faults;
  row["longest_touch_ms"] = longest_ns / 1e6;
  row["pattern_errors"] = std::stoull(vmm.ask("check 0 " + pages));
  ::kill(daemon, SIGKILL);
  ::waitpid(daemon, nullptr, 0);
  vmm.kill_and_wait();
  for (int i = 0; i < 500 && std::filesystem::exists(setting.socket); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // its keeper ends with it
  }
  std::filesystem::remove_all(pattern);
  return row;
}

}  // namespace
}  // namespace fileballoon::bench

int main(int argc, char** argv) {
  using namespace fileballoon;
  CLI::App app("What a half paged-out guest notices of a daemon that is killed and replaced");
  std::string json;
  app.add_option("--json", json, "write the rows to this file");
  CLI11_PARSE(app, argc, argv);
  try {
    bench::Report report("pager_takeover");
    report.add(bench::measure(false));
    report.add(bench::measure(true));
    report.print_table(std::cout);
    if (!json.empty()) {
      report.write_json(json);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "pager_takeover: " << error.what() << '\n';
    return 1;
  }
}
