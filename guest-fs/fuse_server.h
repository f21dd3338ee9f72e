// FuseServer: the file system itself, on libfuse's low-level interface. One folder with four files:
// `balloon` answers every read with zeros and belongs to the inflater alone (as does a hidden
// fifth, the image behind large pages), `target` and `floor` are read and written as sizes, `stats`
// is a JSON object. It never touches the balloon's pages, so it can answer under any memory
// pressure. Threads come from start(); callbacks run on them.
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "fileballoon/bytes.h"
#include "guest-fs/shared_block.h"

struct fuse_session;

namespace fileballoon::guest {

struct FuseServerConfig {
  std::string mount_point;
  std::string source = "balloonfs";  ///< first column of /proc/mounts
  std::string channel;               ///< shown in `stats`
  Bytes ram;
  /// Answer reads of `balloon` with zeros of our own even where the kernel would fill in its own;
  /// for measuring the difference.
  bool copy_zeros = false;
  /// Wakes the inflater after the limits changed or when fresh statistics are wanted.
  std::function<void()> wake_inflater;
};

class FuseServer {
 public:
  /// Mounts. Throws std::system_error or std::runtime_error saying what was tried.
  FuseServer(FuseServerConfig config, SharedBlock& shared);
  /// Unmounts, lazily if something is still using the mount, and joins the threads.
  ~FuseServer();
  FuseServer(const FuseServer&) = delete;
  FuseServer& operator=(const FuseServer&) = delete;

  /// The process that may open `balloon`; before start().
  void set_inflater(pid_t pid) { inflater_ = pid; }
  /// Answers on `threads` threads; `on_end` is called once, from one of them, when the file system
  /// has been unmounted from outside.
  void start(int threads, std::function<void()> on_end);
  /// Detaches the mount and makes the threads end.
  void stop();
  /// The mount is gone already (somebody ran umount): stop() leaves the mount point alone.
  void forget_mount() { mounted_ = false; }

  [[nodiscard]] const FuseServerConfig& config() const { return config_; }
  [[nodiscard]] SharedBlock& shared() { return shared_; }
  [[nodiscard]] pid_t inflater() const { return inflater_; }
  /// Set in INIT: an empty READ reply is a reply of zeros.
  std::atomic<bool> empty_reply_is_zeros{false};

 private:
  void serve();

  FuseServerConfig config_;
  SharedBlock& shared_;
  pid_t inflater_ = 0;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
  std::vector<pthread_t> threads_;  // joined by stop()
  std::atomic<int> running_{0};
  std::atomic<bool> stopping_{false};
  std::function<void()> on_end_;
  std::atomic<bool> ended_{false};
};

}  // namespace fileballoon::guest
