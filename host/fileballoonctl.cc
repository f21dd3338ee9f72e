// fileballoonctl: the command line of the daemon. Each verb is one call of the control socket; what
// the daemon refuses is printed as it says it. Exit status: 0 done, 1 refused by the daemon, 2 bad
// command line, 3 no daemon at the socket (or it broke off).
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <string>
#include <thread>

#include "host/config.h"
#include "host/ctl_client.h"
#include "host/ctl_format.h"
#include "host/ctl_memory.h"

namespace fileballoon::host {
namespace {

constexpr int kExitUsage = 2;

struct AttachOptions {
  std::string name;
  std::int64_t pid = 0;
  std::string channel;
  std::string qmp;
  std::string refault;
  std::int64_t band = 0;
  bool back_frames = false;
  std::string minimum;
  std::int64_t weight = kDefaultWeight;
  std::string store_memory;
  std::string store_compression;
  std::string store_path;
  std::string store_file_limit;
  std::string store_daily_writes;
};

void attach(Control& control, const AttachOptions& options, bool as_json) {
  // The daemon has another working directory.
  const auto absolute = [](const std::string& path) {
    return std::filesystem::absolute(path).lexically_normal().string();
  };
  json::object params{{"name", options.name},
                      {"pid", options.pid},
                      {"channel", absolute(options.channel)},
                      {"band", options.band},
                      {"back_frames", options.back_frames},
                      {"weight", options.weight}};
  const auto add = [&params](const char* key, const std::string& value) {
    if (!value.empty()) {
      params[key] = value;
    }
  };
  add("qmp", options.qmp.empty() ? "" : absolute(options.qmp));
  add("refault", options.refault);
  add("minimum", options.minimum);
  add("store_memory", options.store_memory);
  add("store_compression", options.store_compression);
  add("store_path", options.store_path.empty() ? "" : absolute(options.store_path));
  add("store_file_limit", options.store_file_limit);
  add("store_daily_writes", options.store_daily_writes);
  const json::value result = control.call("attach", std::move(params));
  show(as_json, result, [](const json::value& value) {
    const json::object& vm = value.as_object();
    std::string out = fmt::format("{}: attached (pid {}, {} of RAM)\n",
                                  std::string_view(vm.at("name").as_string()),
                                  vm.at("pid").to_number<std::int64_t>(),
                                  to_string(Bytes(vm.at("ram_bytes").to_number<std::uint64_t>())));
    for (const json::value& warning : vm.at("warnings").as_array()) {
      out += fmt::format("warning: {}\n", std::string_view(warning.as_string()));
    }
    return out;
  });
}

void stats(Control& control, const std::string& name, bool as_json) {
  json::object params;
  if (!name.empty()) {
    params["name"] = name;
  }
  show(as_json, control.call("stats", std::move(params)), [](const json::value& value) {
    if (value.is_object()) {
      return format_stats(value.get_object());
    }
    std::string out;
    for (const json::value& vm : value.as_array()) {
      out += format_stats(vm.as_object());
    }
    return out.empty() ? std::string("no VM is attached\n") : out;
  });
}

void events(Control& control, bool follow, bool as_json) {
  const json::value result = control.call("events", {{"follow", follow}});
  const auto show_event = [&](const json::object& event) {
    as_json ? print_json(event) : print(format_event(event));
  };
  for (const json::value& event : result.as_object().at("recent").as_array()) {
    show_event(event.as_object());
  }
  while (follow) {
    show_event(control.next_event());
  }
}

void top(Control& control, double interval, std::int64_t rounds, bool as_json) {
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  for (std::int64_t round = 0; rounds == 0 || round < rounds; ++round) {
    if (round > 0) {
      std::this_thread::sleep_for(std::chrono::duration<double>(interval));
    }
    const json::value value = control.call("stats", {});
    if (as_json) {
      print_json(value);
    } else {
      // Home and clear below, so the screen does not flicker.
      print((terminal ? "\x1b[H\x1b[J" : "") + format_top(value.as_array()));
    }
  }
}

int run(int argc, char** argv) {
  CLI::App app("fileballoonctl: manages the balloons of this host's VMs through fileballoond");
  app.set_version_flag("--version", "fileballoonctl " FILEBALLOON_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Sizes: bytes, or with K, M, G, T (binary), or % of the VM's RAM.\n"
      "Exit status: 0 done, 1 refused by the daemon, 2 bad command line, 3 no daemon.");
  app.fallthrough();
  std::string socket = kDefaultSocket;
  bool as_json = false;
  app.add_option("--socket", socket, "control socket of the daemon")->capture_default_str();
  app.add_flag("--json", as_json, "print JSON, one object a line");

  std::function<void(Control&)> action;
  AttachOptions options;
  auto* attach_verb = app.add_subcommand("attach", "manage a running VM");
  attach_verb->add_option("NAME", options.name, "what to call it")->required();
  attach_verb->add_option("--pid", options.pid, "process id of the VMM (QEMU)")->required();
  attach_verb->add_option("--channel", options.channel, "socket of QEMU's channel chardev")
      ->required();
  attach_verb->add_option("--qmp", options.qmp, "socket of QEMU's monitor (QMP)");
  attach_verb->add_option("--refault", options.refault,
                          "who answers refaults: kernel or uffd (default: the daemon's)");
  attach_verb->add_option("--band", options.band, "service band, 0 is the highest");
  attach_verb->add_flag(
      "--back-frames", options.back_frames,
      "put memory behind frames when the guest asks (its deflate=tell-host-first)");
  attach_verb->add_option("--minimum", options.minimum, "footprint that the VM is promised");
  attach_verb->add_option("--weight", options.weight, "share within its band, default 100");
  attach_verb->add_option("--store-memory", options.store_memory,
                          "paged-out frames: limit of compressed memory");
  attach_verb->add_option("--store-compression", options.store_compression, "lz4 or zstd");
  attach_verb->add_option("--store-path", options.store_path,
                          "paged-out frames: folder, file or block device");
  attach_verb->add_option("--store-file-limit", options.store_file_limit,
                          "how large that file may grow (default: as the VM's RAM)");
  attach_verb->add_option("--store-daily-writes", options.store_daily_writes,
                          "how much may be written to it per day (default: no limit)");
  attach_verb->callback(
      [&] { action = [&](Control& control) { attach(control, options, as_json); }; });

  std::string name;
  std::string size;
  auto* detach_verb = app.add_subcommand("detach", "let a VM go; its balloon stays as it is");
  detach_verb->add_option("NAME", name)->required();
  detach_verb->callback(
      [&] { action = [&](Control& control) { detach(control, socket, name, as_json); }; });

  auto* list_verb = app.add_subcommand("list", "all VMs, one a line");
  list_verb->callback([&] {
    action = [&](Control& control) {
      show(as_json, control.call("list", {}),
           [](const json::value& value) { return format_list(value.as_array()); });
    };
  });

  const auto add_limit = [&](const char* verb, const char* help, const char* size_help) {
    auto* command = app.add_subcommand(verb, help);
    command->add_option("NAME", name)->required();
    command->add_option("SIZE", size, size_help)->required();
    command->callback([&, verb] {
      action = [&, verb](Control& control) {
        show(as_json, control.call(verb, {{"name", name}, {"size", size}}),
             [](const json::value& value) { return format_limits(value.as_object()); });
      };
    });
  };
  add_limit("mem-set", "set the footprint wanted of a VM; its balloon takes the rest",
            "host memory that the VM should use");
  add_limit("mem-floor", "set the part of a VM's balloon that its guest may never reclaim",
            "locked part of the balloon");

  bool advance = false;
  auto* epoch_verb = app.add_subcommand(
      "epoch", "show the epoch that a guest's page cache ages by, or move it forward");
  epoch_verb->add_option("NAME", name)->required();
  epoch_verb->add_flag("--advance", advance,
                       "what was not used since the last time may go (cache mode epoch)");
  epoch_verb->callback([&] {
    action = [&](Control& control) {
      show(as_json, control.call("epoch", {{"name", name}, {"advance", advance}}),
           [&](const json::value& value) {
             return name + ": epoch " +
                    std::to_string(value.at("epoch").to_number<std::uint64_t>()) + "\n";
           });
    };
  });

  std::string amount;
  auto* purge_verb =
      app.add_subcommand("purge", "have a guest give up page cache at once, cold or not");
  purge_verb->add_option("NAME", name)->required();
  purge_verb->add_option("--amount", amount, "how much (default: all of it)")->type_name("SIZE");
  purge_verb->callback([&] {
    action = [&](Control& control) {
      json::object params{{"name", name}};
      if (!amount.empty()) {
        params["amount"] = amount;
      }
      show(as_json, control.call("purge", std::move(params)),
           [&](const json::value&) { return name + ": asked; stats shows what the guest gave\n"; });
    };
  });

  add_memory_verbs(app, as_json, action);

  std::string mode;
  auto* cache_verb = app.add_subcommand("cache", "choose what a guest does with cold page cache");
  cache_verb->add_option("NAME", name)->required();
  cache_verb->add_option("MODE", mode, "off, unmapped-first, proactive or epoch")->required();
  cache_verb->callback([&] {
    action = [&](Control& control) {
      show(as_json, control.call("cache", {{"name", name}, {"mode", mode}}),
           [&](const json::value&) { return name + ": cold page cache: " + mode + "\n"; });
    };
  });

  auto* stats_verb = app.add_subcommand("stats", "all numbers of one VM or of all");
  stats_verb->add_option("NAME", name);
  stats_verb->callback([&] { action = [&](Control& control) { stats(control, name, as_json); }; });

  bool follow = false;
  auto* events_verb = app.add_subcommand("events", "what happened");
  events_verb->add_flag("--follow,-f", follow, "go on with what happens from now");
  events_verb->callback(
      [&] { action = [&](Control& control) { events(control, follow, as_json); }; });

  double interval = 1;
  std::int64_t rounds = 0;
  auto* top_verb = app.add_subcommand("top", "all VMs, live");
  top_verb->add_option("--interval", interval, "seconds between screens")
      ->check(CLI::Range(0.1, 3600.0));
  top_verb->add_option("--rounds", rounds, "how many screens (default: until interrupted)");
  top_verb->callback(
      [&] { action = [&](Control& control) { top(control, interval, rounds, as_json); }; });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  try {
    Control control(socket);
    action(control);
    return 0;
  } catch (const Failure& failure) {
    std::cerr << "fileballoonctl: " << failure.message << "\n";
    return failure.status;
  }
}

}  // namespace
}  // namespace fileballoon::host

int main(int argc, char** argv) {
  try {
    return fileballoon::host::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "fileballoonctl: the daemon's answer is not understood: " << error.what() << "\n";
    return 3;
  }
}
