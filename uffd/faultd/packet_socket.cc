#include "uffd/faultd/packet_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fileballoon::faultd {
namespace {

// 0, or what connect(2) says: EAGAIN where the queue of a listener is full. A blocking connect
// would wait for a place in it, without end where nobody accepts (unix(7)).
int try_to_connect(const sockaddr_un& address, UniqueFd& fd) {
  fd.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  return fd.valid() && ::connect(fd.get(), name, sizeof address) == 0 ? 0 : errno;
}

}  // namespace

Result<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return Error{"the socket path " + path + " is longer than a UNIX socket's may be"};
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

bool is_listened_on(const std::string& path) {
  const auto address = socket_address(path);
  UniqueFd fd;
  const int error = address.has_value() ? try_to_connect(*address, fd) : EINVAL;
  return error == 0 || error == EAGAIN;
}

Result<pid_t> trusted_peer(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 ||
      (peer.uid != 0 && peer.uid != ::geteuid())) {
    return Error{"it belongs to another user"};
  }
  return peer.pid;
}

Result<UniqueFd> connect_keeper(const std::string& path) {
  const auto address = socket_address(path);
  if (address.has_error()) {
    return address.error();
  }
  UniqueFd fd;
  if (const int error = try_to_connect(*address, fd); error == EAGAIN) {
    return Error{"the fault keeper on " + path +
                 " hangs: it does not accept connections, and its queue of them is full"};
  } else if (error != 0) {
    return Error{"no fault keeper answers on " + path + ": " + std::strerror(error)};
  }
  (void)::fcntl(fd.get(), F_SETFL, 0);
  if (const auto peer = trusted_peer(fd.get()); peer.has_error()) {
    return Error{"the process that listens on " + path +
                 " is not trusted with the guest's memory: " + peer.error().message};
  }
  return fd;
}

Received receive_bytes(int fd, void* data, std::size_t size, std::chrono::milliseconds patience) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + patience;
  pollfd polled{fd, POLLIN, 0};
  int ready = 0;
  do {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    ready = ::poll(&polled, 1, static_cast<int>(std::max<std::int64_t>(0, left)));
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) {
    return Received::nothing;
  }
  return ::recv(fd, data, size, MSG_TRUNC) == static_cast<ssize_t>(size) ? Received::packet
                                                                         : Received::broken;
}

}  // namespace fileballoon::faultd
