// A relay between a vsock port of the guest and a virtio-serial port, so that an agent's vsock
// channel runs on a machine whose kernel has no vhost_vsock: the agent connects to this guest
// itself (CID 1, vsock_loopback). The body of a Task.
#pragma once

#include <string>

#include "tests/vm/guest/task.h"

namespace fileballoon::guest {

/// Listens on vsock `port_number`, replies, and passes bytes between whoever connects and the
/// device `path`, one connection at a time, until it is killed.
void relay_vsock(TaskPort& port, unsigned port_number, const std::string& path);

}  // namespace fileballoon::guest
