// StateFile: what the daemon must remember to find its VMs again after a restart. Written whole and
// atomically (temporary file, fsync, rename), so a crash leaves the old or the new state, never
// half of one. A file that cannot be read is set aside under another name and reported, and the
// daemon starts without it. Control thread only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fileballoon/limits.h"
#include "host/attachment.h"

namespace fileballoon::host {

struct SavedVm {
  VmSpec spec;
  KnownVm known;
  Limits limits;                 ///< what the guest's agent was told
  std::optional<Bytes> ceiling;  ///< the footprint wanted by mem-set; absent: RAM less the target
  std::optional<Bytes> share;    ///< what an arbiter gave the VM
  MemorySettings memory;
};

struct LoadedState {
  std::vector<SavedVm> vms;
  std::optional<std::string> problem;  ///< what was wrong with the file, and where it is now
};

[[nodiscard]] std::string encode_state(const std::vector<SavedVm>& vms);
[[nodiscard]] Result<std::vector<SavedVm>> decode_state(std::string_view text);

class StateFile {
 public:
  /// The file is `directory`/state.json.
  explicit StateFile(const std::string& directory);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] LoadedState load();
  /// Fails (disk full, no permission) without harm to what was saved before.
  [[nodiscard]] Result<void> save(const std::vector<SavedVm>& vms);

 private:
  std::string path_;
};

}  // namespace fileballoon::host
