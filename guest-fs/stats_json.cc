#include "guest-fs/stats_json.h"

#include <array>
#include <cstdio>

#include "fileballoon/deflate_mode.h"
#include "guest-fs/reclaim/cold_cache.h"

namespace fileballoon::guest {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(c));
      out += escape.data();
    } else {
      out += c;
    }
  }
  return out + '"';
}

class Object {
 public:
  void add(std::string_view key, std::uint64_t value) { add_raw(key, std::to_string(value)); }
  void add(std::string_view key, Bytes value) { add(key, value.count()); }
  void add_text(std::string_view key, std::string_view value) { add_raw(key, quoted(value)); }
  void add_null(std::string_view key) { add_raw(key, "null"); }
  void add_bool(std::string_view key, bool value) { add_raw(key, value ? "true" : "false"); }
  [[nodiscard]] std::string finish() && { return text_ + "}\n"; }

 private:
  void add_raw(std::string_view key, const std::string& value) {
    text_ += text_.size() > 1 ? ", " : "";
    text_ += quoted(key) + ": " + value;
  }
  std::string text_ = "{";
};

/// Why the floor is not what it should be.
std::string floor_words(const AgentStats& stats, const Limits& limits,
                        const GrowthDecision& decision) {
  if (stats.locked_pages >= limits.floor.whole_pages()) {
    return "complete";
  }
  return stats.lock_limited != 0 ? "no more memory can be locked (RLIMIT_MEMLOCK)"
                                 : to_string(decision);
}

}  // namespace

std::string stats_json(const AgentStats& stats, const Limits& limits, Bytes ram,
                       std::string_view channel) {
  GrowthDecision decision;
  decision.reason = static_cast<GrowthReason>(stats.growth_reason);
  decision.wait = std::chrono::nanoseconds(stats.growth_wait_ns);
  Object object;
  object.add("ram_bytes", ram);
  object.add("target_bytes", limits.target);
  object.add("floor_bytes", limits.floor);
  object.add("resident_bytes", Bytes::pages(stats.resident_pages));
  object.add("locked_bytes", Bytes::pages(stats.locked_pages));
  if (stats.host_absent_bytes == AgentStats::kUnknown) {
    object.add_null("host_absent_bytes");
  } else {
    object.add("host_absent_bytes", stats.host_absent_bytes);
  }
  object.add("in_flight_bytes", Bytes::pages(stats.in_flight_pages));
  object.add("inflated_pages", stats.inflated_pages);
  object.add("evicted_pages", stats.evicted_pages);
  object.add("yielded_pages", stats.yielded_pages);
  object.add("dropped_pages", stats.dropped_pages);
  object.add("exchanged_pages", stats.exchanged_pages);
  object.add("cancelled_pages", stats.cancelled_pages);
  object.add("migrated_pages", stats.migrated_pages);
  object.add("named_pages", stats.named_pages);
  object.add("unbacked_pages", stats.unbacked_pages);
  object.add("not_zero_pages", stats.not_zero_pages);
  object.add("refused_pages", stats.refused_pages);
  object.add("failed_pages", stats.failed_pages);
  object.add("free_bytes", stats.free_bytes);
  object.add("reserve_bytes", stats.reserve_bytes);
  object.add_text("pages", stats.large_pages != 0 ? "2M" : "4K");
  object.add_text("pages_note", stats.pages_note.data());
  object.add_text("mode", to_string(static_cast<CacheMode>(stats.cache_mode)));
  object.add_text("cache_method", to_string(static_cast<ReclaimMethod>(stats.cache_method)));
  object.add_text("cache", to_string(static_cast<CacheState>(stats.cache_state)));
  object.add_text("cache_note", stats.cache_note.data());
  object.add("cache_evicted_pages", stats.cache_evicted_pages);
  object.add("cache_pauses", stats.cache_pauses);
  object.add("purged_bytes", stats.purged_bytes);
  object.add_text("deflate", to_string(static_cast<DeflateMode>(stats.deflate_mode)));
  object.add_text("growth", to_string(decision));
  object.add_text("floor", floor_words(stats, limits, decision));
  object.add_bool("connected", stats.connected != 0);
  object.add("sessions", stats.sessions);
  object.add("epoch", stats.epoch);
  object.add("epoch_turns", stats.epoch_turns);
  object.add_text("channel", channel);
  return std::move(object).finish();
}

}  // namespace fileballoon::guest
