// What `list` and `stats` say of a VM: each number under a name that tells what it is and in which
// unit. The names are an interface; scripts read them.
#include "fileballoon/deflate_mode.h"
#include "fileballoon/growth.h"
#include "host/guest_stat_names.h"
#include "host/vm.h"

namespace fileballoon::host {
namespace {

/// What a guest sent for an enumeration, which may be anything, in words.
template <class Enum>
boost::json::value words(std::uint64_t value) {
  // Every to_string() has a text for values that it does not know, and all of these are small.
  return boost::json::value(to_string(static_cast<Enum>(std::min<std::uint64_t>(value, 255))));
}

boost::json::value shown(StatName::As as, std::uint64_t value) {
  switch (as) {
    case As::number:
      return value;
    case As::pages_in_bytes:
      return Bytes::pages(value).count();
    case As::centi:
      return static_cast<double>(value) / 100;
    case As::growth: {
      GrowthDecision decision;
      decision.reason = static_cast<GrowthReason>(std::min<std::uint64_t>(value, 255));
      return boost::json::value(to_string(decision));
    }
    case As::cache_mode:
      return words<CacheMode>(value);
    case As::method:
      return words<ReclaimMethod>(value);
    case As::deflate_mode:
      return words<DeflateMode>(value);
  }
  return nullptr;
}

}  // namespace

std::string Vm::state() const {
  if (!channel_) {
    return "no channel";
  }
  return session_.is_established() ? "connected" : "waiting for the guest";
}

boost::json::object Vm::summary() const {
  const Bytes now = footprint();
  boost::json::object object{{"name", spec_.name},
                             {"pid", spec_.pid},
                             {"vmm", vmm_},
                             {"state", state()},
                             {"refault", to_string(spec_.refault)},
                             {"band", spec_.band},
                             {"ram_bytes", ram_size_.count()},
                             {"wanted_footprint_bytes", policy_->wanted().count()},
                             {"target_bytes", limits().target.count()},
                             {"floor_bytes", floor().count()},
                             {"footprint_bytes", now.count()},
                             {"absent_bytes", (ram_size_ - now).count()}};
  const auto resident = guest_stats_.find(wire::StatKey::resident_pages);
  object["guest_resident_bytes"] = resident == guest_stats_.end()
                                       ? boost::json::value(nullptr)
                                       : boost::json::value(Bytes::pages(resident->second).count());
  return object;
}

boost::json::value Vm::guest_numbers() const {
  if (!guest_stats_at_) {
    return nullptr;
  }
  boost::json::object guest;
  for (const StatName& stat : kStatNames) {
    if (const auto found = guest_stats_.find(stat.key); found != guest_stats_.end()) {
      guest[stat.name] = shown(stat.as, found->second);
    }
  }
  guest["age_s"] = std::chrono::duration<double>(Clock::now() - *guest_stats_at_).count();
  return guest;
}

boost::json::object Vm::stats() const {
  boost::json::object object = summary();
  object.erase("guest_resident_bytes");
  object["channel"] = boost::json::object{{"socket", spec_.channel},
                                          {"established", session_.is_established()},
                                          {"last_error", no_channel_because_}};
  object["guest"] = guest_numbers();
  object["memory"] = policy_->describe();
  object["paging"] = pager_ ? boost::json::value(pager_->describe()) : boost::json::value(nullptr);
  if (external_) {
    object["external_actor"] = external_->describe();
  }
  object["deflation"] = deflation_->report();
  object["counters"] = boost::json::object{
      {"reports", counters_.reports},          {"frames_discarded", counters_.discarded},
      {"frames_not_zero", counters_.not_zero}, {"frames_refused", counters_.refused},
      {"frames_failed", counters_.failed},     {"reports_cancelled", counters_.cancelled_reports},
      {"frames_deflated", counters_.deflated}, {"frames_backed", counters_.backed},
      {"sessions", counters_.sessions},        {"sessions_failed", counters_.failed_sessions}};
  boost::json::array warnings;
  for (const std::string& warning : known_.warnings) {
    warnings.emplace_back(warning);
  }
  object["warnings"] = std::move(warnings);
  return object;
}

}  // namespace fileballoon::host
