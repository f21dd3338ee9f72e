#include "host/ctl_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "fileballoon/bytes.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

constexpr const char* kNone = "-";

std::string text(const json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : kNone;
}

std::optional<std::uint64_t> number(const json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) {
    return std::nullopt;
  }
  boost::system::error_code failed;
  const auto n = value->to_number<std::uint64_t>(failed);
  return failed ? std::nullopt : std::optional(n);
}

std::string size(const json::object& object, std::string_view key) {
  const auto n = number(object, key);
  return n ? to_string(Bytes(*n)) : kNone;
}

std::string count(const json::object& object, std::string_view key) {
  const auto n = number(object, key);
  return n ? std::to_string(*n) : kNone;
}

/// Columns as wide as their widest cell; the first is left, the others are right aligned.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i])
                     : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

const json::object* object_in(const json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr ? value->if_object() : nullptr;
}

std::string waiting_lines(const json::array& vms) {
  std::string out;
  for (const json::value& item : vms) {
    if (const auto* vm = item.if_object(); vm != nullptr && text(*vm, "state") == "waiting") {
      out += fmt::format("{}: waiting: {}\n", text(*vm, "name"), text(*vm, "reason"));
    }
  }
  return out;
}

}  // namespace

std::string format_list(const json::array& vms) {
  if (vms.empty()) {
    return "no VM is attached\n";
  }
  std::vector<std::vector<std::string>> rows = {{"NAME", "PID", "BAND", "RAM", "WANTED",
                                                 "FOOTPRINT", "TARGET", "RESIDENT", "FLOOR",
                                                 "STATE"}};
  for (const json::value& item : vms) {
    if (const auto* vm = item.if_object()) {
      rows.push_back({text(*vm, "name"), count(*vm, "pid"), count(*vm, "band"),
                      size(*vm, "ram_bytes"), size(*vm, "wanted_footprint_bytes"),
                      size(*vm, "footprint_bytes"), size(*vm, "target_bytes"),
                      size(*vm, "guest_resident_bytes"), size(*vm, "floor_bytes"),
                      text(*vm, "state")});
    }
  }
  return table(rows) + waiting_lines(vms);
}

std::string format_stats(const json::object& vm) {
  std::string out = fmt::format("{}  pid {} ({}), {}, refaults by {}, band {}\n", text(vm, "name"),
                                count(vm, "pid"), text(vm, "vmm"), text(vm, "state"),
                                text(vm, "refault"), count(vm, "band"));
  const auto line = [&out](std::string_view name, const std::string& value, std::string_view what) {
    out += fmt::format("  {:<18}{:>12}  {}\n", name, value, what);
  };
  if (const auto* channel = object_in(vm, "channel")) {
    if (const std::string error = text(*channel, "last_error"); error != kNone && !error.empty()) {
      out += fmt::format("  no channel: {}\n", error);
    }
  }
  line("RAM", size(vm, "ram_bytes"), "the VM's size");
  line("footprint wanted", size(vm, "wanted_footprint_bytes"), "set by mem-set");
  line("footprint", size(vm, "footprint_bytes"), "measured on the host: allocated blocks");
  line("absent", size(vm, "absent_bytes"), "measured on the host: RAM with no memory behind it");
  line("balloon target", size(vm, "target_bytes"), "RAM minus the footprint wanted");
  if (const auto* memory = object_in(vm, "memory")) {
    out += fmt::format("  policy {}, actor {}: {}: {}\n", text(*memory, "policy"),
                       text(*memory, "actor"), text(*memory, "state"), text(*memory, "reason"));
    line("minimum", size(*memory, "minimum_bytes"), "promised to the VM (mem-band)");
  }
  if (const auto* paging = object_in(vm, "paging")) {
    line("paged out", size(*paging, "paged_bytes"),
         "content in the store" + (paging->contains("state") ? ": " + text(*paging, "state") : ""));
    line("  in memory", size(*paging, "store_memory_bytes"), "of it, compressed");
    line("  on disk", size(*paging, "store_disk_bytes"), "of it, in the store's file");
    line("  came back", count(*paging, "paged_in_pages"), "pages, since paging was started");
    line("  lost", count(*paging, "lost_pages"), "pages that could not be read back");
    if (const std::string why = text(*paging, "stopped_because"); why != kNone) {
      out += fmt::format("  page-out has stopped: {}\n", why);
    }
    if (const std::string problem = text(*paging, "problem");
        problem != kNone && !problem.empty()) {
      out += fmt::format("  no paging: {}\n", problem);
    }
  }
  if (const auto* actor = object_in(vm, "external_actor")) {
    out += fmt::format("  external actor {} (pid {}): says {} {}\n", text(*actor, "path"),
                       count(*actor, "pid"), text(*actor, "says"), text(*actor, "says_text"));
  }
  line("balloon floor", size(vm, "floor_bytes"), "set by mem-floor: never reclaimed");
  if (const auto* guest = object_in(vm, "guest")) {
    const auto* age = guest->if_contains("age_s");
    out += fmt::format("  the guest says ({:.1f} s ago):\n",
                       age != nullptr && age->is_number() ? age->to_number<double>() : 0.0);
    line("  resident", size(*guest, "resident_bytes"), "balloon pages in the guest's cache");
    line("  locked", size(*guest, "locked_bytes"), "of them below the floor");
    line("  available", size(*guest, "mem_available_bytes"), "MemAvailable");
    line("  free", size(*guest, "mem_free_bytes"), "MemFree");
    out += fmt::format("    growth: {}; cold page cache: {} ({})\n", text(*guest, "growth"),
                       text(*guest, "cache_mode"), text(*guest, "cache_method"));
    line("  evicted", count(*guest, "evicted_pages"),
         "balloon pages that the guest has taken back");
    line("  moved", count(*guest, "migrated_pages"), "by the guest's kernel, and reported anew");
    line("  OOM kills", count(*guest, "oom_kills"), "in the guest since it booted");
  } else {
    out += "  the guest has said nothing yet\n";
  }
  if (const auto* counters = object_in(vm, "counters")) {
    line("reports", count(*counters, "reports"), "received since attach");
    line("frames discarded", count(*counters, "frames_discarded"), "verified zero, and freed");
    line("  not zero", count(*counters, "frames_not_zero"), "held data; left alone");
    line("  refused", count(*counters, "frames_refused"), "not RAM, or out of order");
    line("  failed", count(*counters, "frames_failed"), "zero, but could not be freed");
    line("frames deflated", count(*counters, "frames_deflated"), "named as gone (deflate=batched)");
    line("frames backed", count(*counters, "frames_backed"), "on request (tell-host-first)");
  }
  if (const auto* warnings = vm.if_contains("warnings");
      warnings != nullptr && warnings->is_array()) {
    for (const json::value& warning : warnings->get_array()) {
      if (warning.is_string()) {
        out += fmt::format("  warning: {}\n", std::string_view(warning.get_string()));
      }
    }
  }
  return out;
}

std::string format_event(const json::object& event) {
  const std::string vm = text(event, "vm");
  return fmt::format("{}  {:<7}  {:<20}  {}{}\n", text(event, "time"), text(event, "severity"),
                     text(event, "event"), vm == kNone ? "" : vm + ": ", text(event, "text"));
}

std::string format_top(const json::array& vms) {
  std::vector<std::vector<std::string>> rows = {{"NAME", "RAM", "WANTED", "FOOTPRINT", "ABSENT",
                                                 "TARGET", "RESIDENT", "AVAILABLE", "EVICTED",
                                                 "DISCARDED", "STATE"}};
  std::uint64_t ram = 0;
  std::uint64_t footprint = 0;
  for (const json::value& item : vms) {
    const auto* vm = item.if_object();
    if (vm == nullptr) {
      continue;
    }
    const json::object none;
    const auto* guest_numbers = object_in(*vm, "guest");
    const auto* counter_numbers = object_in(*vm, "counters");
    const json::object& guest = guest_numbers != nullptr ? *guest_numbers : none;
    const json::object& counters = counter_numbers != nullptr ? *counter_numbers : none;
    ram += number(*vm, "ram_bytes").value_or(0);
    footprint += number(*vm, "footprint_bytes").value_or(0);
    rows.push_back({text(*vm, "name"), size(*vm, "ram_bytes"), size(*vm, "wanted_footprint_bytes"),
                    size(*vm, "footprint_bytes"), size(*vm, "absent_bytes"),
                    size(*vm, "target_bytes"), size(guest, "resident_bytes"),
                    size(guest, "mem_available_bytes"), count(guest, "evicted_pages"),
                    count(counters, "frames_discarded"), text(*vm, "state")});
  }
  return fmt::format("{} VMs, {} of RAM, footprint {}\n\n", vms.size(), to_string(Bytes(ram)),
                     to_string(Bytes(footprint))) +
         table(rows);
}

std::string format_memory(const json::object& vm) {
  const auto* timeout = vm.if_contains("timeout_s");
  return fmt::format(
      "{}: {}, timeout {:.3g} s, actor {}\n"
      "{}: band {}, minimum {}, weight {}, store {}\n"
      "{}: footprint {}, wanted {}; {}: {}\n",
      text(vm, "name"), text(vm, "policy"),
      timeout != nullptr && timeout->is_number() ? timeout->to_number<double>() : 0.0,
      text(vm, "actor"), text(vm, "name"), count(vm, "band"), size(vm, "minimum_bytes"),
      count(vm, "weight"), text(vm, "store"), text(vm, "name"), size(vm, "footprint_bytes"),
      size(vm, "footprint_target_bytes"), text(vm, "state"), text(vm, "reason"));
}

std::string format_arbiter(const json::object& arbiter) {
  const auto* dry_run = arbiter.if_contains("dry_run");
  const bool is_trial = dry_run != nullptr && dry_run->is_bool() && dry_run->get_bool();
  std::string out = fmt::format("arbiter {}{}; limit {}\n{}\n", text(arbiter, "mode"),
                                is_trial ? "; what it would do now" : "",
                                size(arbiter, "limit_bytes"), text(arbiter, "host"));
  const auto* vms = arbiter.if_contains("vms");
  if (vms == nullptr || !vms->is_array() || vms->get_array().empty()) {
    return out;
  }
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "BAND", "FOOTPRINT", "NEED", "GOAL", "SHARE", "FORCE", "WHY"}};
  for (const json::value& item : vms->get_array()) {
    if (const auto* vm = item.if_object()) {
      rows.push_back({text(*vm, "name"), count(*vm, "band"), size(*vm, "footprint_bytes"),
                      size(*vm, "need_bytes"), size(*vm, "goal_bytes"), size(*vm, "share_bytes"),
                      size(*vm, "by_force_bytes"), text(*vm, "reason")});
    }
  }
  return out + table(rows);
}

std::string format_limits(const json::object& vm) {
  std::string out = fmt::format("{}: footprint wanted {}, balloon target {}, floor {}\n",
                                text(vm, "name"), size(vm, "wanted_footprint_bytes"),
                                size(vm, "target_bytes"), size(vm, "floor_bytes"));
  if (text(vm, "state") != "connected") {
    out += fmt::format("{}: {}: takes effect when its agent (balloonfs) is connected\n",
                       text(vm, "name"), text(vm, "state"));
  }
  return out;
}

}  // namespace fileballoon::host
