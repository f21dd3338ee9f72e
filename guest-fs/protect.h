// Protection of the agent against the memory pressure it lives in: the kernel must not kill it,
// must not page it out, and must not make it wait for file systems while it serves one.
#pragma once

namespace fileballoon::guest {

/// oom_score_adj -1000 and PR_SET_IO_FLUSHER, inherited by children and threads. Logs what the
/// kernel refuses; goes on.
void protect_process();
/// Keeps what the process has touched, or will touch, of its present mappings in memory. With
/// `future`, of later mappings too: not for the process that maps the balloon file.
void lock_memory(bool future);

}  // namespace fileballoon::guest
