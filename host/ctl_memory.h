// The verbs of fileballoonctl about who gets how much memory: policy, bands, and detach, which
// brings back what was paged out and shows how far it is.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "host/ctl_client.h"

namespace fileballoon::host {

/// Adds the verbs to `app`; the one that is chosen sets `action`. `as_json` is read then.
void add_memory_verbs(CLI::App& app, const bool& as_json, std::function<void(Control&)>& action);

/// The detach verb. Its progress goes to standard error, so that --json has only the answer.
void detach(Control& control, const std::string& socket, const std::string& name, bool as_json);

}  // namespace fileballoon::host
