// What an operator decides about one VM's memory beside its target: who brings it there, by which
// mechanisms, how long each may take, what it is promised, and where its frames go when they are
// paged out. Plain values, with their form in the state file.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fileballoon/arbiter_types.h"
#include "fileballoon/cold_cache.h"
#include "fileballoon/policy_names.h"
#include "uffd/pager/codec.h"

namespace fileballoon::host {

/// The store of a VM's paged-out frames: compressed memory, a file, or both as a tier.
struct StoreSettings {
  Bytes memory;  ///< limit of compressed memory; zero: none
  Compression compression = Compression::lz4;
  std::string path;    ///< directory, file or block device; empty: none
  Bytes file_limit;    ///< of the file; zero: as much as the VM has RAM
  Bytes daily_writes;  ///< to the file; zero: no limit
  [[nodiscard]] bool has_store() const { return memory.count() > 0 || !path.empty(); }
  bool operator==(const StoreSettings&) const = default;
};

/// Checks that the parts fit each other; the error names what to change.
[[nodiscard]] Result<void> check_store(const StoreSettings& store);
/// "256 MiB of compressed memory (lz4), then /var/spill"
[[nodiscard]] std::string to_string(const StoreSettings& store);

struct MemorySettings {
  MemoryPolicy policy = MemoryPolicy::balloon_then_page;
  std::chrono::milliseconds timeout{5000};
  ActorName actor{ActorName::Kind::builtin, std::string(kDefaultActor)};
  Bytes minimum;
  std::uint32_t weight = kDefaultWeight;
  StoreSettings store;
  std::optional<CacheMode> cache;  ///< what the guest does with cold page cache; absent: its choice
  bool operator==(const MemorySettings&) const = default;
};

/// "5", "2.5", "1.5s", "800ms": how long a primary mechanism may take.
[[nodiscard]] Result<std::chrono::milliseconds> parse_timeout(std::string_view text);

[[nodiscard]] boost::json::object encode(const MemorySettings& settings);
/// Of what encode() wrote, or an older daemon: what is missing has its default. Throws
/// std::exception on anything else.
[[nodiscard]] MemorySettings decode_memory_settings(const boost::json::object& object);

}  // namespace fileballoon::host
