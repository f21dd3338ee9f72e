// init of a test guest: brings up what the kernel leaves to user space (/proc, /dev, modules, the
// names of virtio ports), then serves the test on its port. It runs as PID 1, which the kernel's
// OOM killer never takes.

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "tests/vm/guest/server.h"
#include "tests/vm/guest/sysinfo.h"

namespace {

constexpr const char* kTestPort = "/dev/virtio-ports/org.fileballoon.test";

void mount_or_say(const char* source, const char* target, const char* type) {
  mkdir(target, 0755);
  if (mount(source, target, type, 0, nullptr) != 0 && errno != EBUSY) {
    std::fprintf(stderr, "init: mount %s: %s\n", target, std::strerror(errno));
  }
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
  while (const dirent* entry = dir ? readdir(dir.get()) : nullptr) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The image holds just the modules that this guest wants, numbered in loading order.
void load_modules() {
  for (const std::string& name : names_in("/modules")) {
    const std::string path = "/modules/" + name;
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) {
      std::fprintf(stderr, "init: module %s: %s\n", name.c_str(), std::strerror(errno));
    }
    if (fd >= 0) close(fd);
  }
}

// What udev would do: /dev/virtio-ports/NAME → /dev/vportNpM.
void name_virtio_ports() {
  mkdir("/dev/virtio-ports", 0755);
  for (const std::string& port : names_in("/sys/class/virtio-ports")) {
    try {
      std::string name = fileballoon::guest::read_text("/sys/class/virtio-ports/" + port + "/name");
      name.erase(name.find_last_not_of('\n') + 1);
      const std::string link = "/dev/virtio-ports/" + name;
      (void)symlink(("/dev/" + port).c_str(), link.c_str());
    } catch (const std::system_error&) {
      // A port without a name.
    }
  }
}

int open_test_port() {
  // The port's device appears shortly after init starts.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    name_virtio_ports();
    const int fd = open(kTestPort, O_RDWR | O_CLOEXEC);
    if (fd >= 0) return fd;
    usleep(10'000);
  }
  throw std::system_error(errno, std::generic_category(), std::string("open ") + kTestPort);
}

}  // namespace

int main() {
  if (getpid() != 1) {
    std::fprintf(stderr, "this is the init of a test guest; it runs as PID 1 only\n");
    return 2;
  }
  mount_or_say("proc", "/proc", "proc");
  mount_or_say("sysfs", "/sys", "sysfs");
  mount_or_say("devtmpfs", "/dev", "devtmpfs");
  mount_or_say("tmpfs", "/tmp", "tmpfs");
  mount_or_say("tmpfs", "/run", "tmpfs");
  // An init of the old kind mounts the controllers of version 1 and no cgroup2.
  const bool v1 =
      fileballoon::guest::read_text("/proc/cmdline").find("guest.cgroup=v1") != std::string::npos;
  mount_or_say(v1 ? "none" : "cgroup2", "/sys/fs/cgroup", v1 ? "tmpfs" : "cgroup2");
  if (v1) {
    mkdir("/sys/fs/cgroup/cpu", 0755);
    if (mount("cgroup", "/sys/fs/cgroup/cpu", "cgroup", 0, "cpu") != 0) {
      std::fprintf(stderr, "init: mount cgroup v1: %s\n", std::strerror(errno));
    }
  }
  mount_or_say("debugfs", "/sys/kernel/debug", "debugfs");
  // As an init like systemd does it. Making the first memory cgroup patches kernel code, and under
  // TCG a CPU that runs that code at the moment can trip over the half-made patch (an int3 oops in
  // kmem_cache_free, seen with QEMU 7.2): nothing runs yet here.
  if (const int control =
          v1 ? -1 : open("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
      control >= 0) {
    if (write(control, "+memory", 7) == 7) mkdir("/sys/fs/cgroup/init", 0755);
    close(control);
  }
  const int console = open("/dev/console", O_RDWR);
  for (int fd = 0; fd < 3 && console >= 0; ++fd) dup2(console, fd);
  setenv("PATH", "/bin:/sbin", 1);
  setenv("HOME", "/", 1);

  // A write to a port that the host has closed must not end init.
  signal(SIGPIPE, SIG_IGN);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGCHLD);
  sigprocmask(SIG_BLOCK, &blocked, nullptr);

  try {
    load_modules();
    fileballoon::guest::Server server(open_test_port());
    server.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "init: %s\n", error.what());
    pause();
  }
  return 1;
}
