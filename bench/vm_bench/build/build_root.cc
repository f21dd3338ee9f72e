#include "bench/vm_bench/build/build_root.h"

#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "tests/vm/kit/child_process.h"

namespace fileballoon::bench {
namespace fs = std::filesystem;
namespace {

constexpr const char* kTcc = "/usr/bin/tcc";
constexpr const char* kLibraries = "/usr/lib/x86_64-linux-gnu";
constexpr const char* kImageSize = "192M";

std::string output_of(const std::vector<std::string>& command) {
  const auto done = vmkit::run_command(command);
  if (done.status != 0) {
    throw std::runtime_error("the build scenario needs " + command.back() + ": " + done.err);
  }
  return done.out;
}

/// A copy of `file`, links followed, at the same path under `root`.
void copy_into(const fs::path& root, const fs::path& file) {
  const fs::path to = root / file.relative_path();
  fs::create_directories(to.parent_path());
  std::error_code error;
  fs::copy_file(fs::canonical(file, error), to, fs::copy_options::overwrite_existing, error);
  if (error) {
    throw std::runtime_error("the build scenario needs " + file.string() + ": " + error.message() +
                             " (scripts/install-deps.sh installs what it takes)");
  }
}

void add_compiler(const fs::path& root) {
  copy_into(root, kTcc);
  // "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
  std::istringstream libraries(output_of({"ldd", kTcc}));
  std::string word;
  while (libraries >> word) {
    if (word.starts_with('/')) copy_into(root, word);
  }
  for (const auto& entry : fs::recursive_directory_iterator(std::string(kLibraries) + "/tcc")) {
    if (entry.is_regular_file()) copy_into(root, entry.path());
  }
  std::istringstream files(output_of({"dpkg-query", "-L", "libc6-dev", "linux-libc-dev"}));
  std::string file;
  while (std::getline(files, file)) {
    if (file.starts_with("/usr/include/") && fs::is_regular_file(file)) copy_into(root, file);
  }
  for (const char* name : {"crt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a", "libm.so",
                           "libdl.a", "libpthread.a"}) {
    copy_into(root, fs::path(kLibraries) / name);
  }
}

void add_shell(const fs::path& root) {
  std::string busybox = output_of({"sh", "-c", "command -v busybox"});
  busybox.erase(busybox.find_last_not_of('\n') + 1);
  fs::create_directories(root / "bin");
  fs::copy_file(fs::canonical(busybox), root / "bin/busybox");
  for (const char* applet :
       {"sh", "tar", "gunzip", "bunzip2", "unxz", "cat", "cmp", "mkdir", "rm"}) {
    fs::create_symlink("busybox", root / "bin" / applet);
  }
}

void add_sources(const fs::path& root) {
  fs::create_directories(root / "src");
  const fs::path sources(FILEBALLOON_BUILD_SOURCES);
  if (!fs::exists(sources / "complete")) {
    throw std::runtime_error("no source archives in " + sources.string() +
                             "; run scripts/fetch-build-sources.sh " + sources.string());
  }
  for (const auto& entry : fs::directory_iterator(sources)) {
    if (entry.path().filename().string().find(".orig.tar.") != std::string::npos) {
      fs::copy_file(entry.path(), root / "src" / entry.path().filename());
    }
  }
  fs::copy_file(FILEBALLOON_BUILD_SCRIPT, root / "src/build.sh");
}

}  // namespace

BuildRoot::BuildRoot() : dir_("bench-build") {
  const fs::path root = dir_.file("root");
  for (const char* name : {"dev", "tmp"}) fs::create_directories(root / name);
  add_compiler(root);
  add_shell(root);
  add_sources(root);
}

void BuildRoot::make_image(const std::string& path) const {
  const auto done =
      vmkit::run_command({"mkfs.ext4", "-q", "-F", "-d", dir_.file("root"), path, kImageSize},
                         std::chrono::seconds(120));
  if (done.status != 0) throw std::runtime_error("mkfs.ext4 (package e2fsprogs): " + done.err);
}

std::string BuildRoot::command(const std::string& mount_point) {
  return "chroot " + mount_point + " /bin/sh /src/build.sh";
}

}  // namespace fileballoon::bench
