#include "tests/vm/guest/vsock_relay.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
// After sys/socket.h, which it needs.
#include <linux/vm_sockets.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace fileballoon::guest {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

/// False at the end of either side.
bool pass_on(int from, int to) {
  std::array<char, 65536> bytes;
  const ssize_t got = read(from, bytes.data(), bytes.size());
  for (ssize_t done = 0; done < got;) {
    const ssize_t sent = write(to, bytes.data() + done, static_cast<std::size_t>(got - done));
    if (sent <= 0) return false;
    done += sent;
  }
  return got > 0;
}

}  // namespace

void relay_vsock(TaskPort& port, unsigned port_number, const std::string& path) {
  const int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) fail("socket(AF_VSOCK)");
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port_number;
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 1) != 0) {
    fail("listen on vsock port " + std::to_string(port_number));
  }
  const int device = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (device < 0) fail("open " + path);
  port.reply({{"listening", true}});
  while (true) {
    const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    for (bool alive = true; alive;) {
      std::array<pollfd, 2> polled = {{{connection, POLLIN, 0}, {device, POLLIN, 0}}};
      if (poll(polled.data(), polled.size(), -1) < 0) continue;
      if (polled[0].revents != 0) alive = pass_on(connection, device);
      if (alive && (polled[1].revents & POLLIN) != 0) alive = pass_on(device, connection);
    }
    close(connection);
  }
}

}  // namespace fileballoon::guest
