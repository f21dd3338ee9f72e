// Connecting to the socket of QEMU's channel chardev. Never blocks: connecting a UNIX socket is
// immediate. Errors name the socket and the QEMU option that makes it.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::host {

/// A connected, non-blocking stream socket. QEMU serves one client per chardev and leaves a second
/// one hanging without a word, so a socket that has a client already (by /proc/net/unix) is
/// refused.
[[nodiscard]] Result<UniqueFd> connect_channel(const std::string& path);

/// The process that listens at the other end (SO_PEERCRED); 0 where it is not known.
[[nodiscard]] pid_t listener_of(int connected_fd);

/// Whether `proc_net_unix` (the text of /proc/net/unix) shows an accepted connection at `path`.
[[nodiscard]] bool has_client(std::string_view proc_net_unix, std::string_view path);

}  // namespace fileballoon::host
