#include "host/state_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

namespace fileballoon::host {
namespace {

namespace json = boost::json;

constexpr int kFormat = 1;

json::object encode_vm(const SavedVm& vm) {
  json::array backings;
  for (const BackingId& id : vm.known.backings) {
    backings.push_back({{"device", id.device}, {"inode", id.inode}, {"bytes", id.size.count()}});
  }
  json::array segments;
  for (const RamSegment& s : vm.known.segments) {
    segments.push_back({{"frame", s.frames.first.number()},
                        {"frames", s.frames.count},
                        {"offset", s.offset.bytes()},
                        {"backing", s.backing}});
  }
  json::object memory = encode(vm.memory);
  if (vm.ceiling) {
    memory["ceiling_bytes"] = vm.ceiling->count();
  }
  if (vm.share) {
    memory["share_bytes"] = vm.share->count();
  }
  return {{"name", vm.spec.name},
          {"pid", vm.spec.pid},
          {"start_time", vm.known.start_time},
          {"channel", vm.spec.channel},
          {"qmp", vm.spec.qmp},
          {"refault", to_string(vm.spec.refault)},
          {"band", vm.spec.band},
          {"back_frames", vm.spec.back_frames},
          {"target_bytes", vm.limits.target.count()},
          {"floor_bytes", vm.limits.floor.count()},
          {"memory", std::move(memory)},
          {"backings", std::move(backings)},
          {"segments", std::move(segments)},
          {"warnings", json::value_from(vm.known.warnings)}};
}

// json::value::at, as_* and to_number throw on anything that is not as expected; decode_state()
// turns that into its error.
std::uint64_t number(const json::object& object, const char* key) {
  return object.at(key).to_number<std::uint64_t>();
}
std::string text(const json::object& object, const char* key) {
  return std::string(object.at(key).as_string());
}

SavedVm decode_vm(const json::object& object) {
  SavedVm vm;
  vm.spec.name = text(object, "name");
  check_vm_name(vm.spec.name).value();
  vm.spec.pid = object.at("pid").to_number<pid_t>();
  vm.spec.channel = text(object, "channel");
  vm.spec.qmp = text(object, "qmp");
  vm.spec.refault = parse_refault_mode(text(object, "refault")).value();
  vm.spec.band = object.at("band").to_number<int>();
  check_band(vm.spec.band).value();
  const auto* back_frames = object.if_contains("back_frames");  // not of an older daemon
  vm.spec.back_frames = back_frames != nullptr && back_frames->as_bool();
  vm.known.start_time = number(object, "start_time");
  vm.limits = {Bytes(number(object, "target_bytes")), Bytes(number(object, "floor_bytes"))};
  if (const auto* memory = object.if_contains("memory")) {  // not in the file of an older daemon
    vm.memory = decode_memory_settings(memory->as_object());
    if (memory->as_object().contains("ceiling_bytes")) {
      vm.ceiling = Bytes(number(memory->as_object(), "ceiling_bytes"));
    }
    if (memory->as_object().contains("share_bytes")) {
      vm.share = Bytes(number(memory->as_object(), "share_bytes"));
    }
  }
  for (const json::value& item : object.at("backings").as_array()) {
    const json::object& b = item.as_object();
    vm.known.backings.push_back(
        {number(b, "device"), number(b, "inode"), Bytes(number(b, "bytes"))});
  }
  for (const json::value& item : object.at("segments").as_array()) {
    const json::object& s = item.as_object();
    vm.known.segments.push_back({{GuestFrame(number(s, "frame")), number(s, "frames")},
                                 HostOffset(number(s, "offset")),
                                 s.at("backing").to_number<std::uint32_t>()});
  }
  RamLayout::create(vm.known.segments).value();
  vm.known.warnings = json::value_to<std::vector<std::string>>(object.at("warnings"));
  return vm;
}

}  // namespace

std::string encode_state(const std::vector<SavedVm>& vms) {
  json::array array;
  for (const SavedVm& vm : vms) {
    array.push_back(encode_vm(vm));
  }
  return json::serialize(json::object{{"format", kFormat}, {"vms", std::move(array)}}) + "\n";
}

Result<std::vector<SavedVm>> decode_state(std::string_view text) {
  try {
    const json::value value = json::parse({text.data(), text.size()});
    const json::object& root = value.as_object();
    if (root.at("format").to_number<int>() != kFormat) {
      return Error{"it has an unknown format"};
    }
    std::vector<SavedVm> vms;
    for (const json::value& item : root.at("vms").as_array()) {
      vms.push_back(decode_vm(item.as_object()));
    }
    return vms;
  } catch (const std::exception& error) {
    return Error{error.what()};
  }
}

StateFile::StateFile(const std::string& directory) : path_(directory + "/state.json") {}

LoadedState StateFile::load() {
  std::ifstream in(path_);
  if (!in) {
    if (errno == ENOENT) {
      return {};
    }
    return {{}, fmt::format("cannot read the state file {}: {}", path_, std::strerror(errno))};
  }
  std::ostringstream content;
  content << in.rdbuf();
  Result<std::vector<SavedVm>> vms = decode_state(content.str());
  if (vms) {
    return {std::move(*vms), std::nullopt};
  }
  const std::string aside = path_ + ".corrupt";
  const bool moved = std::rename(path_.c_str(), aside.c_str()) == 0;
  return {{},
          fmt::format("the state file {} cannot be read ({}); {}; attach its VMs again", path_,
                      vms.error().message,
                      moved ? "it was set aside as " + aside : "it could not be set aside")};
}

Result<void> StateFile::save(const std::vector<SavedVm>& vms) {
  const std::string temporary = path_ + ".new";
  const auto fail = [&](const char* what) {
    const int error = errno;
    ::unlink(temporary.c_str());
    return Error{
        fmt::format("cannot {} the state file {}: {}; VMs attached now will not be found "
                    "again after a restart",
                    what, path_, std::strerror(error))};
  };
  const UniqueFd fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) {
    return fail("create");
  }
  const std::string content = encode_state(vms);
  std::size_t written = 0;
  while (written < content.size()) {
    const ssize_t n = ::write(fd.get(), content.data() + written, content.size() - written);
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return fail("write");
    }
    written += static_cast<std::size_t>(n);
  }
  if (::fsync(fd.get()) != 0) {
    return fail("write");
  }
  if (std::rename(temporary.c_str(), path_.c_str()) != 0) {
    return fail("replace");
  }
  return {};
}

}  // namespace fileballoon::host
