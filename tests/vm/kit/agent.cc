#include "tests/vm/kit/agent.h"

#include <boost/json/parse.hpp>
#include <stdexcept>
#include <thread>

#include "tests/vm/kit/guest_image.h"

namespace fileballoon::vmkit {
namespace {

constexpr auto kMountLimit = std::chrono::seconds(20);
constexpr const char* kLog = "/run/balloonfs.log";

}  // namespace

std::string Agent::path(std::string_view file) const {
  return std::string(kMountPoint) + "/" + std::string(file);
}

void Agent::mount(const std::string& options, boost::json::object how) {
  GuestClient& guest = vm_.guest();
  guest.shell(std::string("mkdir -p ") + kMountPoint);
  boost::json::array argv{"/bin/balloonfs", kMountPoint};
  if (!options.empty()) {
    argv.emplace_back("-o");
    argv.emplace_back(options);
  }
  how["argv"] = argv;
  how["log"] = kLog;
  const auto started = guest.call("spawn", std::move(how));
  const auto deadline = std::chrono::steady_clock::now() + kMountLimit;
  while (true) {
    try {
      (void)stats();
      return;
    } catch (const std::runtime_error&) {
      // Not yet, or never.
    }
    const auto end = guest.call("ended", {{"pid", started.at("pid")}});
    const bool failed = end.at("ended").as_bool() && end.at("wait_status").to_number<int>() != 0;
    if (failed || std::chrono::steady_clock::now() > deadline) {
      throw std::runtime_error("balloonfs did not mount:\n" + guest.get_file(kLog));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void Agent::wait_mounted() {
  const auto deadline = std::chrono::steady_clock::now() + kMountLimit;
  while (true) {
    try {
      (void)stats();
      return;
    } catch (const std::runtime_error&) {
      if (std::chrono::steady_clock::now() > deadline) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

// Lazily: the inflater keeps the balloon file open, so a plain umount(2) says EBUSY.
void Agent::unmount() { vm_.guest().shell(std::string("umount -l ") + kMountPoint); }

void Agent::kill() {
  vm_.guest().shell(std::string("killall -9 balloonfs; umount -l ") + kMountPoint + " || true");
}

std::string Agent::log() { return vm_.guest().get_file(kLog); }

boost::json::object Agent::stats() {
  return boost::json::parse(vm_.guest().get_file(path("stats"))).as_object();
}

std::uint64_t Agent::number(std::string_view name) {
  return stats().at(name).to_number<std::uint64_t>();
}

void Agent::set_target(Bytes size) {
  vm_.guest().put_file(path("target"), std::to_string(size.count()) + "\n");
}

void Agent::set_floor(Bytes size) {
  vm_.guest().put_file(path("floor"), std::to_string(size.count()) + "\n");
}

}  // namespace fileballoon::vmkit
