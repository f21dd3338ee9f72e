#include "guest-fs/fuse_server.h"

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "guest-fs/balloon_file.h"
#include "guest-fs/log.h"
#include "guest-fs/stats_json.h"

namespace fileballoon::guest {
namespace {

/// Attributes never change by themselves; the kernel may keep them for as long as it likes.
constexpr double kForever = 86400.0 * 365;
/// How long `cat stats` waits for fresh numbers before it shows the last ones.
constexpr std::chrono::milliseconds kRefreshWait{100};
/// What one READ asks for at most (Linux 4.20 to 6.18: 256 pages).
constexpr std::size_t kMostReadPages = 256;
constexpr std::size_t kServerStack = 256 * 1024;

struct File {
  fuse_ino_t ino;
  const char* name;
  mode_t mode;
  off_t size = 0;
};
constexpr fuse_ino_t kBalloon = 2;
constexpr fuse_ino_t kTarget = 3;
constexpr fuse_ino_t kFloor = 4;
constexpr fuse_ino_t kStats = 5;
constexpr fuse_ino_t kImage = 6;
constexpr std::array<File, 5> kFiles = {
    {{kBalloon, "balloon", 0400, static_cast<off_t>(kBalloonFileSize)},
     {kTarget, "target", 0644},
     {kFloor, "floor", 0644},
     {kStats, "stats", 0444},
     {kImage, kImageFile, 0400, static_cast<off_t>(ErofsImage::kSize)}}};
/// The last one is found by its name alone.
constexpr std::size_t kListedFiles = kFiles.size() - 1;

FuseServer& server_of(fuse_req_t req) { return *static_cast<FuseServer*>(fuse_req_userdata(req)); }

bool fill_attributes(fuse_ino_t ino, struct stat& status) {
  status = {};
  status.st_ino = ino;
  status.st_nlink = 1;
  if (ino == FUSE_ROOT_ID) {
    status.st_mode = S_IFDIR | 0755;
    status.st_nlink = 2;
    return true;
  }
  const auto file = std::find_if(kFiles.begin(), kFiles.end(),
                                 [ino](const File& candidate) { return candidate.ino == ino; });
  if (file == kFiles.end()) {
    return false;
  }
  status.st_mode = S_IFREG | file->mode;
  status.st_size = file->size;
  return true;
}

void on_init(void* user, fuse_conn_info* connection) {
  auto& server = *static_cast<FuseServer*>(user);
  // Content never changes behind the kernel's back: no automatic invalidation, which would drop
  // pages, pinned or not.
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ |
                                             FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
  connection->want |= connection->capable & FUSE_CAP_EXPLICIT_INVAL_DATA;
  // With the writeback cache the kernel takes a short READ for a hole and
  // fills the page with zeros itself (fuse_copy_page() with page_zeroing, fuse_short_read();
  // Linux 3.15 to 6.18): an empty reply is then a reply of zeros that nobody copies. Nothing in the
  // mount is written through the cache, so the flag changes nothing else.
  if ((connection->capable & FUSE_CAP_WRITEBACK_CACHE) != 0 && !server.config().copy_zeros) {
    connection->want |= FUSE_CAP_WRITEBACK_CACHE;
    server.empty_reply_is_zeros = true;
  }
  connection->max_background = 32;
  connection->congestion_threshold = 24;
}

void on_lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (parent == FUSE_ROOT_ID) {
    for (const File& file : kFiles) {
      if (std::strcmp(name, file.name) == 0) {
        fuse_entry_param entry{};
        entry.ino = file.ino;
        entry.attr_timeout = kForever;
        entry.entry_timeout = kForever;
        fill_attributes(file.ino, entry.attr);
        fuse_reply_entry(req, &entry);
        return;
      }
    }
  }
  fuse_reply_err(req, ENOENT);
}

void on_getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  struct stat status {};
  if (fill_attributes(ino, status)) {
    fuse_reply_attr(req, &status, kForever);
  } else {
    fuse_reply_err(req, ENOENT);
  }
}

void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat*, int to_set, fuse_file_info*) {
  // `echo 600M > target` truncates first; times follow by themselves. Owner and mode are fixed.
  constexpr int kHarmless = FUSE_SET_ATTR_SIZE | FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME |
                            FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME;
  if ((to_set & ~kHarmless) != 0 || (ino != kTarget && ino != kFloor)) {
    fuse_reply_err(req, EPERM);
    return;
  }
  on_getattr(req, ino, nullptr);
}

/// What one reader of `stats` sees, whole, however many reads it takes.
using StatsText = std::string;

StatsText* fresh_stats(FuseServer& server) {
  SharedBlock& shared = server.shared();
  const std::uint32_t mine = shared.refresh_wanted.fetch_add(1) + 1;
  server.config().wake_inflater();
  const auto until = std::chrono::steady_clock::now() + kRefreshWait;
  while (static_cast<std::int32_t>(shared.refresh_done.load() - mine) < 0 &&
         std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return new StatsText(
      stats_json(shared.stats(), shared.limits(), server.config().ram, server.config().channel));
}

void on_open(fuse_req_t req, fuse_ino_t ino, fuse_file_info* info) {
  FuseServer& server = server_of(req);
  const bool writes = (info->flags & O_ACCMODE) != O_RDONLY;
  if (ino == kBalloon || ino == kImage) {
    // A second reader could pin pages the agent does not know of, or read what was never told.
    if (writes || fuse_req_ctx(req)->pid != server.inflater()) {
      fuse_reply_err(req, EPERM);
      return;
    }
    info->keep_cache = 1;
    fuse_reply_open(req, info);
    return;
  }
  if (ino == FUSE_ROOT_ID) {
    fuse_reply_err(req, EISDIR);
    return;
  }
  info->direct_io = 1;  // sizes of these files are not known beforehand
  if (ino == kStats) {
    if (writes) {
      fuse_reply_err(req, EPERM);
      return;
    }
    info->fh = reinterpret_cast<std::uint64_t>(fresh_stats(server));
  }
  if (fuse_reply_open(req, info) == -ENOENT && ino == kStats) {
    delete reinterpret_cast<StatsText*>(info->fh);  // interrupted: no RELEASE will come
  }
}

void on_release(fuse_req_t req, fuse_ino_t ino, fuse_file_info* info) {
  if (ino == kStats) {
    delete reinterpret_cast<StatsText*>(info->fh);
  }
  fuse_reply_err(req, 0);
}

void reply_part(fuse_req_t req, const std::string& text, std::size_t size, off_t offset) {
  // A copy: the reader has its answer before the reply returns here, and may close the file, which
  // frees `text` in another thread.
  const std::string part =
      text.substr(std::min(static_cast<std::size_t>(offset), text.size()), size);
  fuse_reply_buf(req, part.data(), part.size());
}

void reply_zeros(fuse_req_t req, std::size_t size) {
  if (server_of(req).empty_reply_is_zeros) {
    fuse_reply_buf(req, nullptr, 0);
    return;
  }
  static const std::array<std::byte, 65536> kZeros{};
  std::array<iovec, 17> parts;
  std::size_t count = 0;
  while (size > 0 && count < parts.size()) {
    const std::size_t length = std::min(size, kZeros.size());
    parts.at(count++) = {const_cast<std::byte*>(kZeros.data()), length};
    size -= length;
  }
  fuse_reply_iov(req, parts.data(), static_cast<int>(count));
}

/// In full, since a short reply would be filled with zeros: those are not holes.
void reply_image(fuse_req_t req, std::size_t size, off_t offset) {
  std::array<iovec, kMostReadPages + 1> parts;
  std::size_t count = 0;
  auto at = static_cast<std::uint64_t>(offset);
  const std::uint64_t end = std::min(at + size, ErofsImage::kSize);
  while (at < end && count < parts.size()) {
    const auto page = ErofsImage::page(at / kPageSize);
    const std::size_t skip = at % kPageSize;
    const std::size_t length = std::min<std::uint64_t>(kPageSize - skip, end - at);
    parts.at(count++) = {const_cast<std::byte*>(page.data()) + skip, length};
    at += length;
  }
  fuse_reply_iov(req, parts.data(), static_cast<int>(count));
}

void on_read(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info* info) {
  switch (ino) {
    case kBalloon:
      reply_zeros(req, size);
      return;
    case kImage:
      reply_image(req, size, offset);
      return;
    case kStats:
      reply_part(req, *reinterpret_cast<StatsText*>(info->fh), size, offset);
      return;
    case kTarget:
    case kFloor: {
      const Limits limits = server_of(req).shared().limits();
      const Bytes value = ino == kTarget ? limits.target : limits.floor;
      reply_part(req, std::to_string(value.count()) + "\n", size, offset);
      return;
    }
    default:
      fuse_reply_err(req, EISDIR);
  }
}

/// Sets one of the limits from what a user wrote; the error says what was wrong with it.
std::optional<Error> set_limit(FuseServer& server, fuse_ino_t ino, std::string_view text) {
  const Bytes ram = server.config().ram;
  const Result<Bytes> size = parse_size(text, ram);
  if (!size) {
    return size.error();
  }
  while (true) {
    const Limits old = server.shared().limits();
    const Result<Limits> wanted =
        ino == kTarget ? make_limits(*size, old.floor, ram) : make_limits(old.target, *size, ram);
    if (!wanted) {
      return wanted.error();
    }
    if (server.shared().change_limits(old, *wanted)) {
      return std::nullopt;
    }
  }
}

void on_write(fuse_req_t req, fuse_ino_t ino, const char* data, std::size_t size, off_t offset,
              fuse_file_info*) {
  if (ino != kTarget && ino != kFloor) {
    fuse_reply_err(req, EPERM);
    return;
  }
  FuseServer& server = server_of(req);
  const char* const name = ino == kTarget ? "target" : "floor";
  std::optional<Error> error;
  if (offset != 0 || size > 64) {
    error = Error{"a size is written in one piece of at most 64 characters"};
  } else {
    error = set_limit(server, ino, std::string_view(data, size));
  }
  if (error) {
    log_warning(std::string("write to ") + name + ": " + error->message);
    fuse_reply_err(req, EINVAL);
    return;
  }
  server.config().wake_inflater();
  fuse_reply_write(req, size);
}

void on_readdir(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
  if (ino != FUSE_ROOT_ID) {
    fuse_reply_err(req, ENOTDIR);
    return;
  }
  std::array<char, 1024> buffer;
  const std::size_t room = std::min(size, buffer.size());
  std::size_t used = 0;
  for (std::size_t i = static_cast<std::size_t>(offset); i < kListedFiles + 2; ++i) {
    struct stat status {};
    const bool dot = i < 2;
    fill_attributes(dot ? FUSE_ROOT_ID : kFiles.at(i - 2).ino, status);
    const char* const name = i == 0 ? "." : i == 1 ? ".." : kFiles.at(i - 2).name;
    const std::size_t length = fuse_add_direntry(req, buffer.data() + used, room - used, name,
                                                 &status, static_cast<off_t>(i + 1));
    if (length > room - used) {
      break;
    }
    used += length;
  }
  fuse_reply_buf(req, buffer.data(), used);
}

void on_statfs(fuse_req_t req, fuse_ino_t) {
  struct statvfs status {};
  status.f_bsize = kPageSize;
  status.f_frsize = kPageSize;
  status.f_files = kFiles.size();
  status.f_namemax = 16;
  fuse_reply_statfs(req, &status);
}

fuse_lowlevel_ops make_operations() {
  fuse_lowlevel_ops operations{};
  operations.init = on_init;
  operations.lookup = on_lookup;
  operations.getattr = on_getattr;
  operations.setattr = on_setattr;
  operations.open = on_open;
  operations.release = on_release;
  operations.read = on_read;
  operations.write = on_write;
  operations.readdir = on_readdir;
  operations.statfs = on_statfs;
  return operations;
}

void ignore_signal(int) {}

/// libfuse prints problems to stderr, which a daemon does not have.
void on_fuse_log(fuse_log_level level, const char* format, va_list arguments) {
  std::array<char, 512> text;
  std::vsnprintf(text.data(), text.size(), format, arguments);
  std::string_view line(text.data());
  while (line.ends_with('\n')) {
    line.remove_suffix(1);
  }
  if (level <= FUSE_LOG_ERR) {
    log_error(line);
  } else {
    log_warning(line);
  }
}

}  // namespace

FuseServer::FuseServer(FuseServerConfig config, SharedBlock& shared)
    : config_(std::move(config)), shared_(shared) {
  fuse_set_log_func(on_fuse_log);
  // A comma in the source would be read as the next option.
  std::string source = config_.source;
  std::replace(source.begin(), source.end(), ',', '_');
  const std::string options =
      "fsname=" + source + ",subtype=balloonfs,allow_other,default_permissions";
  std::array<std::string, 3> words = {"balloonfs", "-o", options};
  std::array<char*, 3> argv = {words[0].data(), words[1].data(), words[2].data()};
  fuse_args arguments = FUSE_ARGS_INIT(static_cast<int>(argv.size()), argv.data());
  static const fuse_lowlevel_ops kOperations = make_operations();
  session_ = fuse_session_new(&arguments, &kOperations, sizeof kOperations, this);
  fuse_opt_free_args(&arguments);
  if (session_ == nullptr) {
    throw std::runtime_error("libfuse does not accept the mount options '" + options + "'");
  }
  if (fuse_session_mount(session_, config_.mount_point.c_str()) != 0) {
    const int error = errno;
    fuse_session_destroy(session_);
    throw std::runtime_error("cannot mount on " + config_.mount_point + ": " +
                             std::strerror(error));
  }
  mounted_ = true;
}

void FuseServer::start(int threads, std::function<void()> on_end) {
  on_end_ = std::move(on_end);
  struct sigaction action {};
  action.sa_handler = ignore_signal;  // without SA_RESTART: it ends a blocking read
  ::sigaction(SIGUSR1, &action, nullptr);
  pthread_attr_t attributes;
  for (int i = 0; i < threads; ++i) {
    // std::thread gives 8 MiB of locked stack; what serving needs is known.
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, kServerStack);
    pthread_t thread{};
    running_.fetch_add(1);
    const int error = ::pthread_create(
        &thread, &attributes,
        [](void* self) -> void* {
          static_cast<FuseServer*>(self)->serve();
          return nullptr;
        },
        this);
    ::pthread_attr_destroy(&attributes);
    if (error != 0) {
      running_.fetch_sub(1);
      throw std::system_error(error, std::generic_category(), "thread of the file system");
    }
    threads_.push_back(thread);
  }
}

void FuseServer::serve() {
  fuse_buf buffer{};
  while (!stopping_ && fuse_session_exited(session_) == 0) {
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got == -EINTR) {
      continue;
    }
    if (got <= 0) {
      break;
    }
    fuse_session_process_buf(session_, &buffer);
  }
  std::free(buffer.mem);
  running_.fetch_sub(1);
  if (!ended_.exchange(true) && on_end_) {
    on_end_();
  }
}

void FuseServer::stop() {
  stopping_ = true;
  if (mounted_) {
    mounted_ = false;
    ::umount2(config_.mount_point.c_str(), MNT_DETACH);
  }
  // A detached mount that somebody still uses keeps its connection: the readers are told to end.
  while (running_.load() > 0) {
    for (const pthread_t thread : threads_) {
      ::pthread_kill(thread, SIGUSR1);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (const pthread_t thread : threads_) {
    ::pthread_join(thread, nullptr);
  }
  threads_.clear();
}

FuseServer::~FuseServer() {
  stop();
  fuse_session_destroy(session_);  // closes /dev/fuse, which aborts what is left
}

}  // namespace fileballoon::guest
