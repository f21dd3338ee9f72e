// How a keeper and its clients talk: SOCK_SEQPACKET UNIX sockets between processes of the same
// user, one fixed structure a packet (protocol.h; uffd/pager/paging_protocol.h). A packet of any
// other length than the structure's is not that structure. Errors name the socket. Thread-safe.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <string>
#include <type_traits>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::faultd {

/// The address of a socket in the file system; a path that is too long is an error.
[[nodiscard]] Result<sockaddr_un> socket_address(const std::string& path);

/// A blocking connection to the keeper that listens on `path`, made sure to run as root or this
/// user: it is about to be trusted with a guest's memory. Does not wait: one that hangs, with its
/// queue of connections full, is an error.
[[nodiscard]] Result<UniqueFd> connect_keeper(const std::string& path);

/// Whether a process listens on `path`, be it one that hangs. Does not wait.
[[nodiscard]] bool is_listened_on(const std::string& path);

/// The process at the other end; fails where it is neither root's nor this user's.
[[nodiscard]] Result<pid_t> trusted_peer(int fd);

/// Sends one packet. With MSG_DONTWAIT in `flags` a peer that does not read is not waited for.
template <class Message>
[[nodiscard]] bool send_packet(int fd, const Message& message, int flags = 0) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return ::send(fd, &message, sizeof message, MSG_NOSIGNAL | flags) ==
         static_cast<ssize_t>(sizeof message);
}

enum class Received {
  packet,
  nothing,  ///< none came in time
  broken,   ///< closed, or a packet of another kind
};

/// Waits up to `patience` for a packet of `size` bytes.
[[nodiscard]] Received receive_bytes(int fd, void* data, std::size_t size,
                                     std::chrono::milliseconds patience);
template <class Message>
[[nodiscard]] Received receive_packet(int fd, Message& message,
                                      std::chrono::milliseconds patience) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return receive_bytes(fd, &message, sizeof message, patience);
}

}  // namespace fileballoon::faultd
