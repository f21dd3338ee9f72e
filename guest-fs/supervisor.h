// Supervisor: the life of the agent. It starts the inflater, mounts and serves the file system,
// watches both, and takes everything down when either ends, so that a guest never keeps half an
// agent. Called once by main().
#pragma once

#include <vector>

#include "fileballoon/frame.h"
#include "guest-fs/options.h"

namespace fileballoon::guest {

/// Runs the agent with `options` until it is told to stop or fails; returns the exit status of the
/// program. Becomes a daemon unless options.foreground: the calling process returns 0 once the
/// balloon is mounted and its channel is being served, or prints why not and returns 1.
[[nodiscard]] int run_agent(const Options& options, Bytes ram, std::vector<FrameRange> ram_ranges);

}  // namespace fileballoon::guest
