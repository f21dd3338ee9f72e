#include "tests/vm/kit/agent.h"

#include <boost/json/parse.hpp>
#include <stdexcept>

#include "tests/eventually.h"
#include "tests/vm/kit/guest_image.h"

namespace fileballoon::vmkit {
namespace {

constexpr auto kMountLimit = std::chrono::seconds(20);
constexpr auto kMountPoll = std::chrono::milliseconds(20);
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
  const auto failed = [&] {
    const auto end = guest.call("ended", {{"pid", started.at("pid")}});
    return end.at("ended").as_bool() && end.at("wait_status").to_number<int>() != 0;
  };
  (void)eventually([&] { return mounted() || failed(); }, kMountLimit, kMountPoll);
  if (!mounted()) {
    throw std::runtime_error("balloonfs did not mount:\n" + guest.get_file(kLog));
  }
}

void Agent::wait_mounted() {
  if (!eventually([&] { return mounted(); }, kMountLimit, kMountPoll)) {
    (void)stats();  // throws what is wrong
  }
}

bool Agent::mounted() {
  try {
    (void)stats();
    return true;
  } catch (const std::runtime_error&) {
    return false;
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
