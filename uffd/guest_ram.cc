#include "uffd/guest_ram.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

namespace fileballoon {
namespace {

// One line of /proc/PID/maps (proc(5)).
struct MapsLine {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  dev_t device = 0;
  ino_t inode = 0;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  std::string path;
  [[nodiscard]] Bytes size() const { return Bytes(end - start); }
};

bool parse_maps_line(const std::string& line, MapsLine& out) {
  char permissions[5] = {};
  unsigned major_number = 0;
  unsigned minor_number = 0;
  unsigned long long inode = 0;
  int path_at = 0;
  const int fields = std::sscanf(
      line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %llu %n", &out.start, &out.end,
      permissions, &out.offset, &major_number, &minor_number, &inode, &path_at);
  if (fields != 7) {
    return false;
  }
  out.writable = permissions[1] == 'w';
  out.executable = permissions[2] == 'x';
  out.shared = permissions[3] == 's';
  out.device = makedev(major_number, minor_number);
  out.inode = static_cast<ino_t>(inode);
  out.path = line.substr(static_cast<std::size_t>(path_at));
  return true;
}

// What is seen of the process's memory, sorted by what it can be for us.
struct Candidates {
  struct Object {
    dev_t device = 0;
    ino_t inode = 0;
    std::string path;
    std::vector<MapsLine> lines;
  };
  std::vector<Object> shared;
  Bytes largest_private;  // private writable memory, not code
  std::string largest_private_path;
  bool any = false;
};

Candidates read_maps(std::istream& in, Bytes min_size) {
  Candidates found;
  std::string line;
  while (std::getline(in, line)) {
    MapsLine entry;
    if (!parse_maps_line(line, entry)) {
      continue;
    }
    found.any = true;
    if (!entry.writable) {
      continue;
    }
    if (!entry.shared) {
      const bool code_or_stack = entry.executable || entry.path.starts_with("[");
      if (!code_or_stack && entry.size() > found.largest_private) {
        found.largest_private = entry.size();
        found.largest_private_path = entry.path;
      }
      continue;
    }
    if (entry.inode == 0) {
      continue;  // a device mapping such as a KVM run page
    }
    auto at = std::find_if(found.shared.begin(), found.shared.end(), [&](const auto& object) {
      return object.device == entry.device && object.inode == entry.inode;
    });
    if (at == found.shared.end()) {
      at = found.shared.insert(at, {entry.device, entry.inode, entry.path, {}});
    }
    at->lines.push_back(entry);
  }
  // An object counts by what is mapped of it: RAM split around a PCI hole has several mappings.
  std::erase_if(found.shared, [&](const auto& object) {
    Bytes mapped;
    for (const auto& entry : object.lines) {
      mapped += entry.size();
    }
    return mapped < min_size;
  });
  return found;
}

// Opens the object by one of the VMM's own descriptors, else by the mapping itself.
// /proc/PID/fd needs PTRACE_MODE_READ; /proc/PID/map_files CAP_SYS_ADMIN or, since 5.9,
// CAP_CHECKPOINT_RESTORE (proc(5)). The second also finds objects whose descriptor was closed.
UniqueFd open_object(pid_t pid, const Candidates::Object& object, int& error) {
  const std::string proc = "/proc/" + std::to_string(pid);
  error = ENOENT;
  if (const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir((proc + "/fd").c_str()), ::closedir);
      dir) {
    while (const dirent* entry = ::readdir(dir.get())) {
      struct stat st {};
      if (entry->d_name[0] == '.' || ::fstatat(::dirfd(dir.get()), entry->d_name, &st, 0) != 0 ||
          st.st_dev != object.device || st.st_ino != object.inode) {
        continue;
      }
      UniqueFd fd(::openat(::dirfd(dir.get()), entry->d_name, O_RDWR | O_CLOEXEC));
      if (fd.valid()) {
        return fd;
      }
      error = errno;
    }
  } else {
    error = errno;
  }
  for (const auto& line : object.lines) {
    char name[64];
    std::snprintf(name, sizeof name, "/map_files/%" PRIx64 "-%" PRIx64, line.start, line.end);
    UniqueFd fd(::open((proc + name).c_str(), O_RDWR | O_CLOEXEC));
    if (fd.valid()) {
      return fd;
    }
    if (errno != ENOENT) {
      error = errno;
    }
  }
  return {};
}

std::string without_deleted(std::string path) {
  constexpr std::string_view kDeleted = " (deleted)";
  if (path.ends_with(kDeleted)) {
    path.resize(path.size() - kDeleted.size());
  }
  return path;
}

void name_backing(const std::string& maps_path, Backing& backing) {
  constexpr std::string_view kMemfd = "/memfd:";
  const std::string path = without_deleted(maps_path);
  if (path.starts_with(kMemfd)) {
    backing.kind = Backing::Kind::memfd;
    backing.name = path.substr(kMemfd.size());
  } else if (path == "/dev/zero" || path.starts_with("/SYSV")) {
    backing.kind = Backing::Kind::shared_anonymous;  // MAP_SHARED|MAP_ANONYMOUS, mm/shmem.c
    backing.name = "anonymous";
  } else {
    backing.kind = Backing::Kind::tmpfs_file;
    backing.name = path;
  }
}

std::string no_ram(const Process& process, const Candidates& found, Bytes min_size) {
  if (found.largest_private < min_size) {
    return process.label() + " is not a VMM with guest RAM: it maps no shared memory of " +
           to_string(min_size) + " or more";
  }
  const std::string size = std::to_string(found.largest_private.count() >> 20) + "M";
  const std::string why =
      found.largest_private_path.find("memfd:") != std::string::npos
          ? " maps its memory privately (a memory backend with share=off)"
          : " has only private memory (largest: " + to_string(found.largest_private) + ")";
  return process.label() + why +
         ", which nobody can discard from outside; if it is QEMU, start the guest with "
         "-object memory-backend-memfd,id=ram0,size=" +
         size + ",share=on -machine memory-backend=ram0";
}

// The word in brackets of a sysfs choice, e.g. "always within_size [never]".
std::string sysfs_choice(const char* path) {
  std::ifstream in(path);
  std::string text;
  std::getline(in, text);
  const auto open = text.find('[');
  const auto close = text.find(']');
  return open == std::string::npos || close == std::string::npos
             ? std::string()
             : text.substr(open + 1, close - open - 1);
}

}  // namespace

Bytes Backing::footprint() const {
  struct stat st {};
  // st_blocks counts 512-byte units (inode(7)); shmem keeps it exact.
  return ::fstat(fd.get(), &st) == 0 ? Bytes(static_cast<std::uint64_t>(st.st_blocks) * 512)
                                     : Bytes();
}

Result<GuestRam> GuestRam::open(pid_t pid, const Options& options) {
  auto inspected = inspect_process(pid);
  if (inspected.has_error()) {
    return inspected.error();
  }
  Process process = std::move(*inspected);
  const std::string maps_path = "/proc/" + std::to_string(pid) + "/maps";
  std::ifstream maps(maps_path);
  if (!maps) {
    return Error{process.label() + ": cannot read " + maps_path + ": " + std::strerror(errno) +
                 "; run as root or as uid " + std::to_string(process.uid) + " with CAP_SYS_PTRACE"};
  }
  const Candidates found = read_maps(maps, options.min_size);
  if (!found.any) {
    return Error{process.label() +
                 " shows no memory map: it has exited, or this user may not see it"};
  }
  if (found.shared.empty()) {
    return Error{no_ram(process, found, options.min_size)};
  }
  std::vector<Backing> backings;
  std::string refused;
  for (const auto& object : found.shared) {
    int error = 0;
    Backing backing;
    backing.fd = open_object(pid, object, error);
    if (!backing.fd.valid()) {
      return Error{process.label() + ": cannot open its memory " + object.path + ": " +
                   std::strerror(error) +
                   "; opening another process's memory needs CAP_SYS_PTRACE (or CAP_SYS_ADMIN "
                   "where it has closed the descriptor)"};
    }
    struct stat st {};
    struct statfs fs {};
    if (::fstat(backing.fd.get(), &st) != 0 || ::fstatfs(backing.fd.get(), &fs) != 0) {
      return Error{process.label() + ": cannot ask about its memory " + object.path + ": " +
                   std::strerror(errno)};
    }
    if (!S_ISREG(st.st_mode)) {
      continue;
    }
    if (fs.f_type == HUGETLBFS_MAGIC) {
      refused =
          object.path +
          " is on hugetlbfs, whose pages are larger than the guest's and cannot be given back "
          "one by one; use memory-backend-memfd without hugetlb=on";
      continue;
    }
    if (fs.f_type != TMPFS_MAGIC) {
      refused = object.path +
                " is a file on a disk file system; guest RAM must be a memfd or a file on tmpfs";
      continue;
    }
    name_backing(object.path, backing);
    backing.device = st.st_dev;
    backing.inode = st.st_ino;
    backing.size = Bytes(static_cast<std::uint64_t>(st.st_size)).page_floor();
    for (const auto& line : object.lines) {
      backing.mappings.push_back({line.start, {HostOffset(line.offset), line.size()}});
    }
    backings.push_back(std::move(backing));
  }
  if (backings.empty()) {
    return Error{process.label() + ": " +
                 (refused.empty() ? no_ram(process, found, options.min_size)
                                  : "its guest RAM cannot be used: " + refused)};
  }
  if (!process.alive()) {
    return Error{process.label() + " has exited just now"};
  }
  std::stable_sort(backings.begin(), backings.end(), [](const Backing& a, const Backing& b) {
    return a.size != b.size ? a.size > b.size : a.mappings[0].address < b.mappings[0].address;
  });
  GuestRam ram(std::move(process), std::move(backings));
  const std::string huge = sysfs_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  if (huge == "always" || huge == "within_size" || huge == "force") {
    ram.warnings_.push_back(
        "transparent huge pages are on for shared memory (shmem_enabled=" + huge +
        "): a page inside a huge one can often not be freed; set it to never or advise");
  }
  if (!refused.empty()) {
    ram.warnings_.push_back("left alone: " + refused);
  }
  return ram;
}

GuestRam GuestRam::adopt(Process process, std::vector<Backing> backings) {
  return {std::move(process), std::move(backings)};
}

Result<void> GuestRam::keep_only(std::span<const InodeId> objects) {
  for (const InodeId& object : objects) {
    const bool is_there = std::any_of(backings_.begin(), backings_.end(),
                                      [&](const Backing& b) { return b.id() == object; });
    if (!is_there) {
      return Error{process_.label() + " does not map the memory object " +
                   std::to_string(object.device) + ":" + std::to_string(object.inode) +
                   " as its guest's RAM"};
    }
  }
  std::erase_if(backings_, [&](const Backing& backing) {
    return std::find(objects.begin(), objects.end(), backing.id()) == objects.end();
  });
  return {};
}

Bytes GuestRam::size() const {
  Bytes sum;
  for (const auto& backing : backings_) {
    sum += backing.size;
  }
  return sum;
}

Bytes GuestRam::footprint() const {
  Bytes sum;
  for (const auto& backing : backings_) {
    sum += backing.footprint();
  }
  return sum;
}

}  // namespace fileballoon
