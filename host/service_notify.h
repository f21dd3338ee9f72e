// Telling systemd that the daemon is ready or stopping (sd_notify(3)): one datagram to the socket
// in NOTIFY_SOCKET, nothing where it is not set.
#pragma once

#include <string_view>

namespace fileballoon::host {

void service_notify(std::string_view state);

}  // namespace fileballoon::host
