#include "host/channel_socket.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace fileballoon::host {

bool has_client(std::string_view proc_net_unix, std::string_view path) {
  // "Num RefCount Protocol Flags Type St Inode Path"; a socket that was accepted carries the path
  // of its listener and state 03 (SS_CONNECTED).
  while (!proc_net_unix.empty()) {
    const auto newline = proc_net_unix.find('\n');
    std::string_view line = proc_net_unix.substr(0, newline);
    proc_net_unix.remove_prefix(newline == std::string_view::npos ? proc_net_unix.size()
                                                                  : newline + 1);
    if (!line.ends_with(path) || line.size() <= path.size() ||
        line[line.size() - path.size() - 1] != ' ') {
      continue;
    }
    std::istringstream fields{std::string(line)};
    std::string number, references, protocol, flags, type, state;
    fields >> number >> references >> protocol >> flags >> type >> state;
    if (state == "03") {
      return true;
    }
  }
  return false;
}

Result<UniqueFd> connect_channel(const std::string& path) {
  constexpr std::string_view kHow =
      "QEMU makes it with -chardev socket,id=balloon,path=PATH,server=on,wait=off";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error{fmt::format("channel socket path '{}' must have 1 to {} characters", path,
                             sizeof address.sun_path - 1)};
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return Error{fmt::format("channel socket {}: {}; {}", path, std::strerror(errno), kHow)};
  }
  if (!S_ISSOCK(info.st_mode)) {
    return Error{fmt::format("channel {} is not a socket; {}", path, kHow)};
  }
  std::ifstream table("/proc/net/unix");
  std::ostringstream text;
  text << table.rdbuf();
  if (has_client(text.str(), path)) {
    return Error{fmt::format(
        "channel socket {} is held by another client (QEMU serves one at a time); is another "
        "daemon or a terminal connected to it?",
        path)};
  }
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return Error{fmt::format("cannot make a socket: {}", std::strerror(errno))};
  }
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    switch (errno) {
      case ECONNREFUSED:
        return Error{fmt::format(
            "channel socket {}: nobody listens on it (left over from a VM that is gone?); {}", path,
            kHow)};
      case EACCES:
      case EPERM:
        return Error{
            fmt::format("channel socket {}: no permission to connect; run the daemon as root or as "
                        "the user of the VM",
                        path)};
      case EAGAIN:
        return Error{
            fmt::format("channel socket {}: its queue is full; another client holds it", path)};
      default:
        return Error{fmt::format("channel socket {}: {}", path, std::strerror(errno))};
    }
  }
  return fd;
}

pid_t listener_of(int connected_fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(connected_fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return 0;
  }
  return credentials.pid;
}

}  // namespace fileballoon::host
