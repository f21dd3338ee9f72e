#include "host/attach_request.h"

#include <fmt/format.h>

#include <limits>

#include "host/rpc.h"

namespace fileballoon::host {
namespace {

[[noreturn]] void bad(const std::string& message) {
  throw RpcFailure(RpcCode::invalid_params, message);
}

template <class T>
T good(const Result<T>& result) {
  if (!result) {
    bad(result.error().message);
  }
  if constexpr (!std::is_void_v<T>) {
    return *result;
  }
}

}  // namespace

AttachRequest::AttachRequest(const boost::json::object& raw, RefaultMode default_refault)
    : params_(raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "pid", "channel", "qmp", "refault", "band", "back_frames", "minimum",
                     "weight", "store_memory", "store_compression", "store_path",
                     "store_file_limit", "store_daily_writes"});
  spec.name = params.text("name");
  spec.channel = params.text("channel");
  spec.qmp = params.optional_text("qmp").value_or("");
  const std::int64_t pid = params.integer("pid");
  const std::int64_t band = params.optional_integer("band").value_or(0);
  const auto refault = params.optional_text("refault");
  good(check_vm_name(spec.name));
  good(check_band(band));
  spec.refault = refault ? good(parse_refault_mode(*refault)) : default_refault;
  spec.back_frames = params.flag("back_frames");
  if (pid <= 0 || pid > std::numeric_limits<pid_t>::max()) {
    bad(fmt::format("{} is no process id", pid));
  }
  spec.pid = static_cast<pid_t>(pid);
  spec.band = static_cast<int>(band);
}

Vm::Wanted AttachRequest::wanted(Bytes ram) const {
  const RpcParams params(params_);
  const auto size = [&](const char* key) {
    return params_.contains(key) ? params.size(key, ram) : Bytes(0);
  };
  Vm::Wanted wanted;
  MemorySettings& settings = wanted.settings;
  settings.minimum = size("minimum");
  const std::int64_t weight = params.optional_integer("weight").value_or(kDefaultWeight);
  good(check_weight(weight));
  settings.weight = static_cast<std::uint32_t>(weight);
  good(make_vm_settings({ram, settings.minimum, ram}));
  settings.store.memory = size("store_memory");
  settings.store.file_limit = size("store_file_limit");
  settings.store.daily_writes = size("store_daily_writes");
  settings.store.path = params.optional_text("store_path").value_or("");
  if (const auto compression = params.optional_text("store_compression")) {
    settings.store.compression = good(parse_compression(*compression));
  }
  good(check_store(settings.store));
  return wanted;
}

}  // namespace fileballoon::host
