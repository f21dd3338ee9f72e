// Channel: the byte stream between the agent and the host daemon, over a virtio-serial port, a UNIX
// socket or vsock. It hides how each of them shows that the other side is there, went away, or came
// back. Non-blocking and single-threaded; HostLink owns it and decides when to open it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {

/// Where the host is: what the user wrote after `channel=`.
struct ChannelAddress {
  enum class Kind { virtio_port, unix_socket, vsock };
  Kind kind = Kind::virtio_port;
  /// Device path or port name, or socket path.
  std::string path;
  std::uint32_t cid = 0;
  std::uint32_t port = 0;
  bool operator==(const ChannelAddress&) const = default;

  /// Accepts `/dev/…`, `unix:PATH`, `vsock:CID:PORT`, or a bare virtio-serial port name.
  [[nodiscard]] static Result<ChannelAddress> parse(std::string_view text);
};

inline constexpr std::string_view kDefaultPort = "org.fileballoon.0";

[[nodiscard]] std::string to_string(const ChannelAddress& address);

/// The device node of a virtio-serial port: the path itself where it exists, else the node that
/// sysfs names for it (guests without udev have no /dev/virtio-ports). The error names the QEMU
/// options that create the port.
[[nodiscard]] Result<std::string> find_virtio_port(const ChannelAddress& address);

class Channel {
 public:
  enum class Io {
    done,     ///< some bytes moved; see `count`
    blocked,  ///< nothing to read, or no room to write, for now
    away,     ///< the other side is not there, but this end stays open (virtio-serial)
    lost,     ///< close() and open() again
  };
  struct IoResult {
    Io io = Io::lost;
    std::size_t count = 0;
  };

  explicit Channel(ChannelAddress address) : address_(std::move(address)) {}

  /// Opens or connects. 0 or an errno value; EINPROGRESS counts as open (writes will block).
  [[nodiscard]] int open();
  void close() { fd_.reset(); }
  [[nodiscard]] bool is_open() const { return fd_.valid(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const ChannelAddress& address() const { return address_; }

  /// Whether somebody is at the other end now (a virtio-serial port shows POLLHUP while the host's
  /// side is closed).
  [[nodiscard]] bool peer_present() const;

  [[nodiscard]] IoResult read(std::span<std::byte> out);
  [[nodiscard]] IoResult write(std::span<const std::byte> data);

 private:
  ChannelAddress address_;
  UniqueFd fd_;
};

}  // namespace fileballoon::guest
