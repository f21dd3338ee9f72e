// Handler: serves the memory of one Firecracker micro-VM with this project's engine: content pages
// from the snapshot's memory file, zero pages where the guest's balloon has removed memory, in
// whatever order faults and REMOVE events arrive.
//
// Why the order does not matter: the kernel hands out faults before events, so a fault in a removed
// range can be read first. Filling it with old content is refused by the kernel (EAGAIN) until the
// event has been read; the engine then reads it, marks the range absent, and answers with zeros.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "uffd/fault_engine.h"
#include "uffd/firecracker/handshake.h"

namespace fileballoon::firecracker {

/// A read-only mapping of the snapshot's memory file, as a source of pages.
class SnapshotSource final : public PageSource {
 public:
  /// `offsets[i]` is where region i begins in the file. The error says what does not fit.
  [[nodiscard]] static Result<std::unique_ptr<SnapshotSource>> open(
      const std::string& path, const std::vector<Region>& regions);
  ~SnapshotSource() override;
  [[nodiscard]] Content fetch(std::uint32_t object, std::uint64_t first, std::uint32_t count,
                              std::uint64_t fault) override;
  void filled(std::uint32_t, std::uint64_t, std::uint32_t) override {}

 private:
  SnapshotSource(void* base, std::size_t size, std::vector<std::uint64_t> offsets)
      : base_(base), size_(size), offsets_(std::move(offsets)) {}
  void* base_;
  std::size_t size_;
  std::vector<std::uint64_t> offsets_;
};

class Listener {
 public:
  /// Binds `path`; an old socket file there is replaced.
  [[nodiscard]] static Result<Listener> listen(const std::string& path);
  /// Waits for a connection; gives the connected socket.
  [[nodiscard]] Result<UniqueFd> accept(std::chrono::milliseconds timeout) const;
  Listener(Listener&&) noexcept = default;
  Listener& operator=(Listener&&) noexcept = delete;
  ~Listener();

 private:
  Listener(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

class Handler {
 public:
  /// Takes the handshake from `socket` and starts to serve. `memory_file`: the snapshot's; empty: a
  /// VM without content, all of whose missing pages are zero.
  [[nodiscard]] static Result<std::unique_ptr<Handler>> start(UniqueFd socket,
                                                              const std::string& memory_file);

  /// Waits until the VM has exited ("… has exited"), or the peer sent something it may not (the
  /// text says what; the VM is served on), or `timeout` has passed (empty).
  [[nodiscard]] std::string wait(std::chrono::milliseconds timeout);

  [[nodiscard]] EngineStats stats() const { return engine_->stats(); }
  [[nodiscard]] const WatchedRam& ram() const { return *ram_; }

 private:
  Handler() = default;
  UniqueFd socket_;
  UniqueFd pidfd_;
  pid_t pid_ = 0;
  std::unique_ptr<SnapshotSource> source_;
  std::unique_ptr<WatchedRam> ram_;
  std::unique_ptr<FaultEngine> engine_;  // uses the two above
};

}  // namespace fileballoon::firecracker
