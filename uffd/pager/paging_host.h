// PagingHost: the keeper's side of paging. It owns a VM's Paging, answers requests about it, and
// keeps a marker beside the keeper's socket for as long as frames may be paged out: whoever thinks
// of killing a keeper looks for it first, since paged-out content would die with it. A guard stops
// the VM if the keeper dies all the same. One thread, but for the PageSource.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "uffd/pager/keeper_guard.h"
#include "uffd/pager/paging.h"
#include "uffd/pager/paging_protocol.h"

namespace fileballoon::faultd {

class PagingHost {
 public:
  /// `ram` outlives this; `socket` is the keeper's.
  PagingHost(WatchedRam& ram, pid_t pid, std::string socket)
      : ram_(ram), pid_(pid), socket_(std::move(socket)) {}
  PagingHost(const PagingHost&) = delete;
  PagingHost& operator=(const PagingHost&) = delete;
  /// Removes the marker. A guard that leave() has not dismissed sees that its keeper ends: it stops
  /// the VM, unless that is gone.
  ~PagingHost();

  /// For the fault engine; must be destroyed after it.
  [[nodiscard]] PagingSource& source() { return source_; }

  void answer(const PagingRequest& request, PagingReply& reply);

  /// The keeper is to end while the VM goes on: starts to bring everything back. May be called
  /// again; returns true when all is back.
  [[nodiscard]] bool leave();

 private:
  [[nodiscard]] Result<void> start(const PagingRequest& request);
  void report(PagingReply& reply);
  void unmark();

  WatchedRam& ram_;
  pid_t pid_;
  std::string socket_;
  bool marked_ = false;
  std::optional<KeeperGuard> guard_;
  PagingSource source_;
  std::unique_ptr<Paging> paging_;
};

}  // namespace fileballoon::faultd
