// PagingHost: the keeper's side of paging. It owns a VM's Paging, answers requests about it, and
// keeps a marker beside the keeper's socket for as long as frames may be paged out: whoever thinks
// of killing a keeper looks for it first, since paged-out content would die with it. A guard stops
// the VM if the keeper dies all the same. A store is opened in a thread of its own, since a disk
// may take long for it and the keeper must answer meanwhile. One thread, but for the PageSource.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "uffd/pager/keeper_guard.h"
#include "uffd/pager/paging.h"
#include "uffd/pager/paging_protocol.h"

namespace fileballoon::faultd {

class PagingHost {
 public:
  /// Paging::start, or what a test puts in its place. May block and throw.
  using Starter =
      std::function<Result<std::unique_ptr<Paging>>(WatchedRam&, pid_t, const PagingOptions&)>;

  /// `ram` outlives this; `socket` is the keeper's.
  PagingHost(WatchedRam& ram, pid_t pid, std::string socket, Starter starter = Paging::start)
      : ram_(ram), pid_(pid), socket_(std::move(socket)), starter_(std::move(starter)) {}
  PagingHost(const PagingHost&) = delete;
  PagingHost& operator=(const PagingHost&) = delete;
  /// Removes the marker. A guard that leave() has not dismissed sees that its keeper ends: it stops
  /// the VM, unless that is gone.
  ~PagingHost();

  /// For the fault engine; must be destroyed after it.
  [[nodiscard]] PagingSource& source() { return source_; }

  void answer(const PagingRequest& request, PagingReply& reply);

  /// The keeper is to end while the VM goes on: starts to bring everything back. May be called
  /// again; returns true when all is back, and no store is being opened any more.
  [[nodiscard]] bool leave();

 private:
  [[nodiscard]] Result<void> start(const PagingRequest& request);
  void adopt();
  [[nodiscard]] Result<void> take_over(std::unique_ptr<Paging> paging);
  void report(PagingReply& reply);
  void unmark();

  WatchedRam& ram_;
  pid_t pid_;
  std::string socket_;
  bool marked_ = false;
  std::optional<KeeperGuard> guard_;
  PagingSource source_;
  std::unique_ptr<Paging> paging_;
  Starter starter_;
  bool starting_ = false;
  std::string start_error_;
  std::thread opener_;
  std::atomic<bool> opened_{false};                    // the outcome is there
  Result<std::unique_ptr<Paging>> outcome_ = Error{};  // the opener's until then
};

}  // namespace fileballoon::faultd
