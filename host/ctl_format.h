// How fileballoonctl shows what the daemon answers: tables for people, made of the same JSON that
// --json prints. Pure, so it is tested without a daemon.
#pragma once

#include <boost/json.hpp>
#include <string>

namespace fileballoon::host {

/// The table of `list`.
[[nodiscard]] std::string format_list(const boost::json::array& vms);
/// One VM's `stats`, each number with what it is and where it comes from.
[[nodiscard]] std::string format_stats(const boost::json::object& vm);
/// One line of `events`.
[[nodiscard]] std::string format_event(const boost::json::object& event);
/// One screen of `top`.
[[nodiscard]] std::string format_top(const boost::json::array& vms);
/// What `mem-policy` and `mem-band` say.
[[nodiscard]] std::string format_memory(const boost::json::object& vm);
/// What `arbiter` says: the host, then a line a VM.
[[nodiscard]] std::string format_arbiter(const boost::json::object& arbiter);
/// What `mem-set` and `mem-floor` say.
[[nodiscard]] std::string format_limits(const boost::json::object& vm);

}  // namespace fileballoon::host
