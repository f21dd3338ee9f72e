#include "host/memory_settings.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "fileballoon/policy.h"
#include "host/actor_registry.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

/// Compressed pages in less than this are bookkeeping more than store: one slab of each class.
constexpr Bytes kLeastStore = Bytes::mib(1);

template <class T, class Read>
void read_if_there(const json::object& object, const char* key, T& out, Read&& read) {
  if (const auto* value = object.if_contains(key)) {
    out = read(*value);
  }
}

Bytes bytes_in(const json::value& value) { return Bytes(value.to_number<std::uint64_t>()); }
std::string text_in(const json::value& value) { return std::string(value.as_string()); }

}  // namespace

Result<void> check_store(const StoreSettings& store) {
  if (store.path.empty() && (store.file_limit.count() > 0 || store.daily_writes.count() > 0)) {
    return Error{"a limit of the store's file or of its daily writes needs a path for it"};
  }
  if (!store.path.empty() && !store.path.starts_with('/')) {
    return Error{fmt::format("the store path '{}' is not absolute", store.path)};
  }
  for (const Bytes limit : {store.memory, store.file_limit, store.daily_writes}) {
    if (limit.count() > 0 && limit < kLeastStore) {
      return Error{fmt::format("a store limit of {} is too small; choose at least {}",
                               to_string(limit), to_string(kLeastStore))};
    }
  }
  return {};
}

std::string to_string(const StoreSettings& store) {
  std::string text;
  if (store.memory.count() > 0) {
    text = fmt::format("{} of compressed memory ({})", to_string(store.memory),
                       to_string(store.compression));
  }
  if (!store.path.empty()) {
    text += (text.empty() ? "" : ", then ") + store.path;
  }
  return text.empty() ? "none" : text;
}

Result<std::chrono::milliseconds> parse_timeout(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const double scale = unit.empty() || unit == "s" ? 1000 : unit == "ms" ? 1 : 0;
  if (error != std::errc{} || scale == 0 || !std::isfinite(value)) {
    return Error{
        fmt::format("'{}' is no time; write seconds as in 2.5, or 800ms", text.substr(0, 40))};
  }
  const double longest = std::chrono::milliseconds(TargetPolicy::kLongestTimeout).count();
  const double time = value * scale;
  if (!(time >= 1 && time <= longest)) {
    return Error{
        fmt::format("a timeout of {} is out of range; choose 1ms to {} s", text, longest / 1000)};
  }
  return std::chrono::milliseconds(std::llround(time));
}

json::object encode(const MemorySettings& settings) {
  const StoreSettings& store = settings.store;
  json::object object{{"policy", to_string(settings.policy)},
                      {"timeout_ms", settings.timeout.count()},
                      {"actor", to_string(settings.actor)},
                      {"minimum_bytes", settings.minimum.count()},
                      {"weight", settings.weight},
                      {"store",
                       {{"memory_bytes", store.memory.count()},
                        {"compression", to_string(store.compression)},
                        {"path", store.path},
                        {"file_limit_bytes", store.file_limit.count()},
                        {"daily_writes_bytes", store.daily_writes.count()}}}};
  if (settings.cache) {
    object["cache"] = to_string(*settings.cache);
  }
  return object;
}

MemorySettings decode_memory_settings(const json::object& object) {
  MemorySettings settings;
  read_if_there(object, "policy", settings.policy,
                [](const json::value& v) { return parse_policy(text_in(v)).value(); });
  read_if_there(object, "timeout_ms", settings.timeout, [](const json::value& v) {
    return std::chrono::milliseconds(v.to_number<std::int64_t>());
  });
  read_if_there(object, "actor", settings.actor, [](const json::value& v) {
    return parse_actor(text_in(v), actor_names()).value();
  });
  read_if_there(object, "minimum_bytes", settings.minimum, bytes_in);
  read_if_there(object, "weight", settings.weight,
                [](const json::value& v) { return v.to_number<std::uint32_t>(); });
  if (const auto* cache = object.if_contains("cache")) {
    settings.cache = parse_cache_mode(text_in(*cache)).value();
  }
  if (const auto* stored = object.if_contains("store")) {
    const json::object& store = stored->as_object();
    StoreSettings& out = settings.store;
    read_if_there(store, "memory_bytes", out.memory, bytes_in);
    read_if_there(store, "compression", out.compression,
                  [](const json::value& v) { return parse_compression(text_in(v)).value(); });
    read_if_there(store, "path", out.path, text_in);
    read_if_there(store, "file_limit_bytes", out.file_limit, bytes_in);
    read_if_there(store, "daily_writes_bytes", out.daily_writes, bytes_in);
    check_store(out).value();
  }
  return settings;
}

}  // namespace fileballoon::host
