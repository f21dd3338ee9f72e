#include "host/ctl_memory.h"

#include <unistd.h>

#include <chrono>
#include <future>
#include <memory>

#include "fileballoon/bytes.h"
#include "host/ctl_format.h"

namespace fileballoon::host {
namespace {

struct MemoryOptions {
  std::string name;
  std::string policy;
  std::string timeout;
  std::string actor;
  std::string minimum;
  std::int64_t band = -1;
  std::int64_t weight = -1;
};

/// How often the progress of a detach is asked for.
constexpr std::chrono::milliseconds kProgressInterval{200};

void show_memory(Control& control, const char* verb, json::object params, bool as_json) {
  show(as_json, control.call(verb, std::move(params)),
       [](const json::value& value) { return format_memory(value.as_object()); });
}

/// "120 MiB of 500 MiB back in memory", or nothing while there is nothing to tell.
std::string progress_of(const json::value& stats) {
  const auto* paging = stats.as_object().if_contains("paging");
  const auto* state = paging != nullptr && paging->is_object()
                          ? paging->get_object().if_contains("paging_in")
                          : nullptr;
  if (state == nullptr) {
    return {};
  }
  const auto bytes = [state](const char* key) {
    return to_string(Bytes(state->at(key).to_number<std::uint64_t>()));
  };
  return fmt::format("{} of {} back in memory", bytes("done_bytes"), bytes("total_bytes"));
}

}  // namespace

void add_memory_verbs(CLI::App& app, const bool& as_json, std::function<void(Control&)>& action) {
  const auto options = std::make_shared<MemoryOptions>();
  auto* policy = app.add_subcommand(
      "mem-policy", "show or choose how a VM is brought to its target, and by whom");
  policy->add_option("NAME", options->name)->required();
  policy->add_option("POLICY", options->policy,
                     "balloon-then-page, balloon-only, page-only or page-then-balloon");
  policy->add_option("--timeout", options->timeout,
                     "time for the first mechanism before the second starts, seconds");
  policy->add_option("--actor", options->actor,
                     "fileballoon, balloon, pager, or external:PATH, a program of your own");
  policy->callback([options, &as_json, &action] {
    action = [options, &as_json](Control& control) {
      json::object params{{"name", options->name}};
      for (const auto& [key, value] :
           {std::pair("policy", options->policy), std::pair("timeout", options->timeout),
            std::pair("actor", options->actor)}) {
        if (!value.empty()) {
          params[key] = value;
        }
      }
      show_memory(control, "mem-policy", std::move(params), as_json);
    };
  });

  auto* band = app.add_subcommand("mem-band", "show or change what a VM is promised");
  band->add_option("NAME", options->name)->required();
  band->add_option("--band", options->band, "service band, 0 (first) to 7")
      ->check(CLI::NonNegativeNumber);
  band->add_option("--minimum", options->minimum, "footprint that the VM never goes below");
  band->add_option("--weight", options->weight, "share within its band")
      ->check(CLI::NonNegativeNumber);
  band->callback([options, &as_json, &action] {
    action = [options, &as_json](Control& control) {
      json::object params{{"name", options->name}};
      if (options->band >= 0) {
        params["band"] = options->band;
      }
      if (options->weight >= 0) {
        params["weight"] = options->weight;
      }
      if (!options->minimum.empty()) {
        params["minimum"] = options->minimum;
      }
      show_memory(control, "mem-band", std::move(params), as_json);
    };
  });
  auto* arbiter = app.add_subcommand("arbiter", "how the host's memory is divided, and why");
  const auto dry_run = std::make_shared<bool>(false);
  const auto mode = std::make_shared<std::string>();
  const auto limit = std::make_shared<std::string>();
  arbiter->add_flag("--dry-run", *dry_run, "what it would do now; moves nothing");
  arbiter->add_option("--mode", *mode, "off, dry-run or on, until the daemon ends");
  arbiter->add_option("--limit", *limit, "for all VMs together, until the daemon ends; or none");
  arbiter->callback([dry_run, mode, limit, &as_json, &action] {
    action = [dry_run, mode, limit, &as_json](Control& control) {
      json::object params{{"dry_run", *dry_run}};
      if (!mode->empty()) {
        params["mode"] = *mode;
      }
      if (!limit->empty()) {
        params["limit"] = *limit;
      }
      show(as_json, control.call("arbiter", std::move(params)),
           [](const json::value& value) { return format_arbiter(value.as_object()); });
    };
  });
}

void detach(Control& control, const std::string& socket, const std::string& name, bool as_json) {
  auto done = std::async(std::launch::async, [&control, &name] {
    // Gigabytes may have to come back from a disk.
    return control.call("detach", {{"name", name}}, JsonLineClient::Timeout(-1));
  });
  Control watch(socket);
  std::string told;
  while (done.wait_for(kProgressInterval) != std::future_status::ready) {
    std::string progress;
    try {
      progress = progress_of(watch.call("stats", {{"name", name}}));
    } catch (const Failure&) {
      continue;  // detached a moment ago
    }
    if (!progress.empty() && progress != told) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), progress.c_str());
      told = std::move(progress);
    }
  }
  show(as_json, done.get(), [&name](const json::value&) { return name + ": detached\n"; });
}

}  // namespace fileballoon::host
