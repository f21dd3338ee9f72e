// FaultdClient: the daemon's side of a VM that has a keeper. It finds the keeper, or starts one,
// and sends it every discard; it is the Discarder of such a VM. A keeper that died is replaced (the
// kernel answers refaults meanwhile), one that hangs is killed first, so that the guest is never
// left without an answer.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "uffd/faultd/protocol.h"
#include "uffd/guest_ram.h"

namespace fileballoon::faultd {

class FaultdClient final : public Discarder {
 public:
  struct Options {
    /// The keeper's socket: one per VM, in a directory that only the daemon's user may enter.
    std::string socket;
    /// The keeper's program; empty: beside this program, in the build tree, or installed.
    std::string program;
    RefaultMode refaults = RefaultMode::engine;
    Resolver resolver = Resolver::zeropage;
    /// Userfaultfds, each with a reader: two answer a single thread faster than one does.
    unsigned shards = 2;
    /// A keeper that gives no answer for this long is killed and replaced.
    std::chrono::milliseconds patience{2000};
  };

  /// Connects to the keeper of the VM of `ram`, or starts one; one of another version or
  /// mode, or of another process with the same pid, is told to leave first. `ram` must outlive the
  /// client.
  [[nodiscard]] static Result<std::unique_ptr<FaultdClient>> attach(const GuestRam& ram,
                                                                    Options options);
  /// Leaves the keeper running: it goes on answering faults until detach() or the VM's end.
  ~FaultdClient() override = default;

  [[nodiscard]] DiscardOutcome discard(std::uint32_t backing, HostRange range) override;

  /// Counters of the engine; an error says that no keeper could be reached.
  [[nodiscard]] Result<StatsReply> stats();

  /// Waits up to `timeout` for refaults (deflation), and tells of them, oldest first. The result is
  /// false where some were dropped because nobody asked in time. Uses a connection of its own: a
  /// thread may wait here while others discard.
  [[nodiscard]] Result<bool> wait_refaults(
      std::chrono::milliseconds timeout,
      const std::function<void(std::uint32_t, HostRange)>& visit);

  /// Gives the VM back to the kernel and ends the keeper.
  [[nodiscard]] Result<void> detach();

  /// Pid of the keeper now; 0 where there is none.
  [[nodiscard]] pid_t keeper() const;
  /// Keepers started because one was missing, died or hung.
  [[nodiscard]] unsigned restarts() const;

 private:
  struct Connection {
    UniqueFd fd;
    UniqueFd pidfd;  // of the keeper
    pid_t pid = 0;
  };

  FaultdClient(const GuestRam& ram, Options options);
  [[nodiscard]] Result<Connection> connect() const;
  [[nodiscard]] Result<Connection> connect_or_start();
  [[nodiscard]] Result<void> start_keeper() const;
  [[nodiscard]] bool is_ours(const HelloReply& hello) const;
  template <class Reply>
  [[nodiscard]] bool exchange(Connection& connection, const Request& request, Reply& reply,
                              std::chrono::milliseconds patience) const;
  template <class Reply>
  [[nodiscard]] bool ask(const Request& request, Reply& reply);

  const GuestRam& ram_;
  Options options_;
  mutable std::mutex mutex_;  // guards what follows; held during one exchange
  Connection connection_;
  std::chrono::steady_clock::time_point retry_at_{};
  unsigned restarts_ = 0;
  bool detached_ = false;
  std::mutex wait_mutex_;  // guards waiting_; never taken with mutex_ held
  Connection waiting_;
};

/// Where the keeper of this very VM listens, whichever daemon asks: /run/fileballoon (or
/// $XDG_RUNTIME_DIR/fileballoon for a user without rights there; created where missing), named by
/// the VMM's pid and start time.
[[nodiscard]] Result<std::string> default_socket(const GuestRam& ram);

/// Whether a keeper listens on `socket`, or has left frames behind that are paged out: then nobody
/// else may discard or fill that VM's RAM.
[[nodiscard]] bool is_kept(const std::string& socket);

}  // namespace fileballoon::faultd
