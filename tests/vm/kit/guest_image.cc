#include "tests/vm/kit/guest_image.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>

#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/cpio.h"
#include "tests/vm/kit/read_file.h"

namespace fileballoon::vmkit {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFetchHint = "run scripts/fetch-guest-kernel.sh DEST (make deps does)";

std::string build_path(const std::string& name) {
  return std::string(FILEBALLOON_BUILD_DIR) + "/" + name;
}

std::string kernel_dir() {
  const char* chosen = std::getenv("FILEBALLOON_GUEST_KERNEL");
  return chosen != nullptr ? chosen : FILEBALLOON_GUEST_KERNEL_DIR;
}

std::string find_program(const std::string& name) {
  std::istringstream dirs(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
  std::string dir;
  while (std::getline(dirs, dir, ':')) {
    const std::string path = dir + "/" + name;
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return {};
}

/// Loading order of modules, dependencies first. The .modinfo section of a module says what it
/// needs ("depends=a,b"); no depmod is asked, since nothing else here needs one.
class ModuleOrder {
 public:
  explicit ModuleOrder(const std::string& folder) {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.path().extension() == ".ko") paths_[canonical(entry.path().stem())] = entry.path();
    }
  }

  void add(const std::string& name) {
    if (!seen_.insert(canonical(name)).second) return;
    const auto found = paths_.find(canonical(name));
    // What is not there as a module may be built in; a guest that lacks it will say so.
    if (found == paths_.end()) return;
    const std::string content = read_file(found->second);
    const std::string key = std::string(1, '\0') + "depends=";
    const auto at = content.find(key);
    if (at != std::string::npos) {
      std::istringstream names(content.c_str() + at + key.size());
      std::string dependency;
      while (std::getline(names, dependency, ',')) add(dependency);
    }
    order_.push_back(found->second);
  }

  [[nodiscard]] const std::vector<fs::path>& order() const { return order_; }

 private:
  static std::string canonical(std::string name) {
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  }

  std::map<std::string, fs::path> paths_;
  std::set<std::string> seen_;
  std::vector<fs::path> order_;
};

void add_busybox(CpioWriter& archive) {
  const std::string busybox = find_program("busybox");
  archive.add_copy("bin/busybox", busybox, 0755);
  std::istringstream applets(run_command({busybox, "--list"}).out);
  std::string applet;
  while (std::getline(applets, applet)) {
    if (applet != "busybox") archive.add_symlink("bin/" + applet, "/bin/busybox");
  }
}

// Folders of a path like "a/b/c": "a", "a/b".
void add_parents(CpioWriter& archive, const std::string& name, std::set<std::string>& known) {
  for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    if (known.insert(name.substr(0, slash)).second) archive.add_directory(name.substr(0, slash));
  }
}

}  // namespace

std::optional<std::string> why_no_guest() {
  if (find_program("qemu-system-x86_64").empty()) {
    return "qemu-system-x86_64 is not installed (package qemu-system-x86)";
  }
  if (find_program("busybox").empty()) return "busybox is not installed (package busybox-static)";
  if (!fs::exists(kernel_dir() + "/vmlinuz")) {
    return "no guest kernel in " + kernel_dir() + "; " + kFetchHint;
  }
  if (!fs::exists(agent_path())) {
    return "no static agent in " + agent_path() + "; sanitized builds have none, others make it";
  }
  return std::nullopt;
}

GuestKernel find_guest_kernel() {
  GuestKernel kernel{kernel_dir() + "/vmlinuz", kernel_dir() + "/modules", {}};
  if (!fs::exists(kernel.image)) {
    throw std::runtime_error("no guest kernel " + kernel.image + "; " + kFetchHint);
  }
  std::ifstream(kernel_dir() + "/version") >> kernel.release;
  return kernel;
}

std::string agent_path() { return build_path("tests/vm/kit/guest-balloonfs"); }
std::string daemon_path() { return build_path("host/fileballoond"); }
std::string ctl_path() { return build_path("host/fileballoonctl"); }

void write_initramfs(const std::string& path, const GuestKernel& kernel,
                     const InitramfsOptions& options) {
  CpioWriter archive(path);
  std::set<std::string> known{"bin", "dev", "proc", "sys", "tmp", "run", "mnt", "modules"};
  for (const std::string& name : known) archive.add_directory(name);
  archive.add_symlink("sbin", "bin");
  archive.add_character_device("dev/console", 5, 1, 0600);
  archive.add_copy("init", build_path("tests/vm/guest/vm_guest_init"), 0755);
  add_busybox(archive);
  archive.add_copy("bin/balloonfs", agent_path(), 0755);
  archive.add_symlink("bin/mount.fuse.balloonfs", "/bin/balloonfs");

  ModuleOrder modules(kernel.modules);
  if (options.erofs) modules.add("erofs");
  for (const std::string& name : options.modules) modules.add(name);
  int number = 10;
  for (const fs::path& module : modules.order()) {
    archive.add_copy("modules/" + std::to_string(number++) + "-" + module.filename().string(),
                     module, 0644);
  }

  for (const auto& file : options.files) {
    add_parents(archive, file.name, known);
    archive.add_copy(file.name, file.source, file.executable ? 0755 : 0644);
  }
  archive.finish();
}

}  // namespace fileballoon::vmkit
