#include "guest-fs/channel.h"

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace fileballoon::guest {
namespace {

constexpr std::string_view kPortFolder = "/dev/virtio-ports/";

bool parse_number(std::string_view text, std::uint32_t& out) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), out);
  return parsed.ec == std::errc{} && parsed.ptr == text.data() + text.size();
}

Error bad_channel(std::string_view text, std::string_view why) {
  return Error{"bad channel '" + std::string(text) + "': " + std::string(why) +
               "; write /dev/virtio-ports/NAME, unix:PATH or vsock:CID:PORT"};
}

}  // namespace

Result<ChannelAddress> ChannelAddress::parse(std::string_view text) {
  ChannelAddress address;
  if (text.starts_with("unix:")) {
    address.kind = Kind::unix_socket;
    address.path = text.substr(5);
    if (address.path.empty()) {
      return bad_channel(text, "the path is empty");
    }
    if (address.path.size() >= sizeof(sockaddr_un::sun_path)) {
      return bad_channel(text, "a socket path has at most 107 bytes");
    }
    return address;
  }
  if (text.starts_with("vsock:")) {
    address.kind = Kind::vsock;
    const std::string_view rest = text.substr(6);
    const auto colon = rest.find(':');
    if (colon == std::string_view::npos || !parse_number(rest.substr(0, colon), address.cid) ||
        !parse_number(rest.substr(colon + 1), address.port)) {
      return bad_channel(text, "CID and PORT are two decimal numbers");
    }
    return address;
  }
  if (text.empty()) {
    return bad_channel(text, "it is empty");
  }
  address.path = text;
  if (!text.starts_with('/')) {
    if (text.find_first_of("/:") != std::string_view::npos) {
      return bad_channel(text, "unknown kind of channel");
    }
    address.path = std::string(kPortFolder) + std::string(text);
  }
  return address;
}

std::string to_string(const ChannelAddress& address) {
  switch (address.kind) {
    case ChannelAddress::Kind::virtio_port:
      return address.path;
    case ChannelAddress::Kind::unix_socket:
      return "unix:" + address.path;
    case ChannelAddress::Kind::vsock:
      break;
  }
  return "vsock:" + std::to_string(address.cid) + ":" + std::to_string(address.port);
}

Result<std::string> find_virtio_port(const ChannelAddress& address) {
  struct stat status {};
  if (::stat(address.path.c_str(), &status) == 0) {
    if (!S_ISCHR(status.st_mode)) {
      return Error{"channel " + address.path +
                   " is not a character device; for a socket write unix:" + address.path};
    }
    return Result<std::string>(boost::system::in_place_value, address.path);
  }
  const std::string name = std::filesystem::path(address.path).filename();
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator("/sys/class/virtio-ports", ignored)) {
    std::ifstream file(entry.path() / "name");
    std::string found;
    if (std::getline(file, found) && found == name) {
      return Result<std::string>(boost::system::in_place_value,
                                 "/dev/" + entry.path().filename().string());
    }
  }
  return Error{"no channel device " + address.path +
               ": give the VM a port with the QEMU options '-device virtio-serial-pci -chardev "
               "socket,id=balloon,path=SOCKET,server=on,wait=off -device "
               "virtserialport,chardev=balloon,name=" +
               name + "', or name another channel with -o channel="};
}

int Channel::open() {
  constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  switch (address_.kind) {
    case ChannelAddress::Kind::virtio_port: {
      const Result<std::string> device = find_virtio_port(address_);
      if (!device) {
        return ENODEV;
      }
      fd_.reset(::open(device->c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
      return fd_.valid() ? 0 : errno;
    }
    case ChannelAddress::Kind::unix_socket: {
      fd_.reset(::socket(AF_UNIX, kSocketFlags, 0));
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path, address_.path.data(), address_.path.size());
      if (fd_.valid() &&
          ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
        return 0;
      }
      break;
    }
    case ChannelAddress::Kind::vsock: {
      fd_.reset(::socket(AF_VSOCK, kSocketFlags, 0));
      sockaddr_vm address{};
      address.svm_family = AF_VSOCK;
      address.svm_cid = address_.cid;
      address.svm_port = address_.port;
      if (fd_.valid() &&
          (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
           errno == EINPROGRESS)) {
        return 0;
      }
      break;
    }
  }
  const int error = errno;
  fd_.reset();
  return error;
}

bool Channel::peer_present() const {
  if (!is_open()) {
    return false;
  }
  pollfd poll_fd{fd_.get(), POLLIN | POLLOUT, 0};
  if (::poll(&poll_fd, 1, 0) < 0) {
    return false;
  }
  // A socket still connecting shows nothing at all; then it is simply not writable yet.
  return (poll_fd.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
}

Channel::IoResult Channel::read(std::span<std::byte> out) {
  while (true) {
    const ssize_t count = ::read(fd_.get(), out.data(), out.size());
    if (count > 0) {
      return {Io::done, static_cast<std::size_t>(count)};
    }
    if (count == 0) {
      // virtio_console reads 0 bytes while the host's side is closed (port_fops_read, 6.12).
      return {address_.kind == ChannelAddress::Kind::virtio_port ? Io::away : Io::lost, 0};
    }
    if (errno == EINTR) {
      continue;
    }
    return {errno == EAGAIN || errno == ENOTCONN ? Io::blocked : Io::lost, 0};
  }
}

Channel::IoResult Channel::write(std::span<const std::byte> data) {
  while (true) {
    const ssize_t count = address_.kind == ChannelAddress::Kind::virtio_port
                              ? ::write(fd_.get(), data.data(), data.size())
                              : ::send(fd_.get(), data.data(), data.size(), MSG_NOSIGNAL);
    if (count >= 0) {
      return {Io::done, static_cast<std::size_t>(count)};
    }
    if (errno == EINTR) {
      continue;
    }
    return {errno == EAGAIN || errno == ENOTCONN ? Io::blocked : Io::lost, 0};
  }
}

}  // namespace fileballoon::guest
