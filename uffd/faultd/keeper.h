// Keeper: the process that holds a VM's userfaultfd. It is not the daemon, so that a daemon that
// crashes, is killed, stopped or replaced leaves the guest's faults answered. It attaches to one
// VM, runs the fault engine, does all discards of that VM on request (one owner), and ends with the
// VM or when told to. If it dies itself, the kernel closes the userfaultfd and answers balloon
// refaults as ordinary ones, with zero pages: the right content. Not so for frames that are paged
// out: it brings them back before it leaves, and a marker beside its socket says that it must not
// be killed meanwhile (uffd/pager/paging_host.h).
//
// Where the kernel answers refaults (`--refault kernel`) it does the VM's discards all the same, so
// that they are write-protected, and a daemon that is stopped in the middle of one stops no guest.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "uffd/faultd/protocol.h"
#include "uffd/guarded_discard.h"
#include "uffd/hot_attach.h"
#include "uffd/pager/paging_host.h"

namespace fileballoon::faultd {

class Keeper {
 public:
  struct Options {
    std::string socket;  ///< as for listen(); the marker of paged-out frames lies beside it
    /// kernel: only writes to frames that are being discarded come here.
    RefaultMode refaults = RefaultMode::engine;
    Resolver resolver = Resolver::zeropage;
    /// Userfaultfds, each with a reader: two answer a single thread faster than one does.
    unsigned shards = 2;
    /// The memory objects that are the guest's RAM; empty: all that could be.
    std::vector<InodeId> objects;
  };

  /// Finds the RAM of `pid`, attaches and starts to answer faults.
  [[nodiscard]] static Result<std::unique_ptr<Keeper>> attach(pid_t pid, const Options& options);

  /// Listens on `path` (mode 0600, replaces a dead socket; fails where a keeper answers there).
  [[nodiscard]] Result<void> listen(const std::string& path);

  /// Serves until the VM ends, a client says detach, `stop_fd` becomes readable, or the engine can
  /// serve no more; but for the first, brings back what is paged out before. Being short of memory
  /// or threads makes it try again, not end. Returns the reason. Removes the socket.
  [[nodiscard]] std::string serve(int stop_fd);

  [[nodiscard]] const GuestRam& ram() const { return ram_; }

 private:
  struct Client {
    UniqueFd fd;
    enum class Wait { none, refaults, deflation };
    Wait waits = Wait::none;
    std::uint64_t known = 0;  // deflated pages it has been told of
    std::chrono::steady_clock::time_point wait_until{};
  };
  enum class Next { keep, drop, detach };

  Keeper(GuestRam ram, const Options& options) : ram_(std::move(ram)), options_(options) {}
  [[nodiscard]] std::string step(int stop_fd);
  void accept_client();
  [[nodiscard]] Next handle(Client& client);
  [[nodiscard]] Next handle_safely(Client& client);
  void take_refaults();
  [[nodiscard]] bool answer_wait(Client& client, bool timed_out);
  [[nodiscard]] bool reply_hello(const Client& client) const;
  [[nodiscard]] bool reply_stats(const Client& client) const;

  GuestRam ram_;
  Options options_;
  std::unique_ptr<WatchedRam> watched_;
  std::unique_ptr<PagingHost> paging_;  // before the engine, which calls into it
  std::unique_ptr<FaultEngine> engine_;
  std::unique_ptr<GuardedDiscarder> discarder_;
  std::string path_;
  std::string leaving_;  // why; serves on until what is paged out is back
  UniqueFd listener_;
  std::vector<Client> clients_;
  std::vector<RefaultedRange> backlog_;  // drained from the engine, not yet told
  bool backlog_complete_ = true;
};

}  // namespace fileballoon::faultd
