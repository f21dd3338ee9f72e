// PagingClient: the daemon's side of paging: asks the keeper of a VM, over a connection of its own,
// to page it out towards a footprint, tells how it stands, and brings everything back. It never
// ends a keeper: while frames are paged out, their content lives there. One thread at a time.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "fileballoon/unique_fd.h"
#include "uffd/pager/paging.h"
#include "uffd/pager/paging_protocol.h"

namespace fileballoon::faultd {

class PagingClient {
 public:
  struct Status {
    bool active = false;    ///< paging has been started
    bool starting = false;  ///< the store is being opened
    PagerService::Status service;
    Paging::Detach detach;
    std::vector<PagerEvent> events;  ///< since the last request of any client
    std::uint64_t events_dropped = 0;
  };

  /// `socket`: the keeper's (FaultdClient::Options::socket). Connects now; every request connects
  /// anew if it must. Errors name the socket.
  [[nodiscard]] static Result<PagingClient> connect(std::string socket);

  /// Makes the store; pages nothing out yet. The error is the keeper's, about the path or limit, or
  /// says that a disk takes longer than ten seconds; the keeper goes on opening it then.
  [[nodiscard]] Result<void> start(const PagingOptions& options);
  /// Waits for the end of a start, as start() does.
  [[nodiscard]] Result<void> wait_for_start();
  [[nodiscard]] Result<void> set_goal(Bytes footprint);
  [[nodiscard]] Result<void> clear_goal();
  /// The most that the VM's RAM may take at every moment; nothing: no ceiling. See PagerService.
  [[nodiscard]] Result<void> set_ceiling(std::optional<Bytes> most);
  /// Pages out no more, and brings back what lies in the store beyond `paged`.
  [[nodiscard]] Result<void> set_limit(Bytes paged);
  [[nodiscard]] Result<Status> status();
  /// Starts to bring everything back; status() tells how far that is.
  [[nodiscard]] Result<void> begin_page_in();
  /// Brings everything back and waits, telling `progress` about every tenth of a second.
  [[nodiscard]] Result<Pager::Progress> page_in_all(
      const std::function<void(const Pager::Progress&)>& progress);

 private:
  explicit PagingClient(std::string socket) : socket_(std::move(socket)) {}
  [[nodiscard]] Result<void> open();
  [[nodiscard]] Result<PagingReply> ask(const PagingRequest& request);
  [[nodiscard]] Result<void> command(const PagingRequest& request);

  std::string socket_;
  UniqueFd fd_;
};

}  // namespace fileballoon::faultd
