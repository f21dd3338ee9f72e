// fileballoond: the host's daemon. Reads its configuration, takes its control socket, finds its VMs
// again, and serves until SIGTERM or SIGINT.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <thread>

#include "host/control_server.h"
#include "host/service_notify.h"
#include "uffd/niceness.h"

namespace fileballoon::host {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitBadConfig = 2;
constexpr std::chrono::seconds kStopPatience{2};

struct CommandLine {
  std::string config_file;
  std::string socket;
  std::string state_dir;
  std::string log_level;
  bool check_config = false;
};

/// The configuration that the command line asks for; an error names file, line and key.
Result<Config> load_config(const CommandLine& line) {
  Config config;
  // The default file may be missing; one that was named may not.
  if (!line.config_file.empty() || std::filesystem::exists(kDefaultConfigFile)) {
    Result<Config> read =
        read_config(line.config_file.empty() ? kDefaultConfigFile : line.config_file);
    if (!read) {
      return read;
    }
    config = std::move(*read);
  }
  if (!line.socket.empty()) {
    config.socket = std::filesystem::absolute(line.socket).string();
  }
  if (!line.state_dir.empty()) {
    config.state_dir = std::filesystem::absolute(line.state_dir).string();
  }
  if (!line.log_level.empty()) {
    if (!is_log_level(line.log_level)) {
      return Error{"unknown log level '" + line.log_level +
                   "'; write trace, debug, info, warning, error or off"};
    }
    config.log_level = line.log_level;
  }
  return config;
}

asio::awaitable<void> bring_up(Daemon& daemon, ControlServer& server, asio::io_context& control,
                               const Config& config, int& exit_status) {
  try {
    co_await daemon.start();
    server.listen();
  } catch (const std::exception& error) {
    spdlog::error("{}", error.what());
    exit_status = kExitFailure;
    control.stop();
    co_return;
  }
  spdlog::info("ready; control socket {}", config.socket);
  service_notify("READY=1");
}

int serve(const Config& config) {
  std::error_code failed;
  std::filesystem::create_directories(config.state_dir, failed);
  if (failed) {
    spdlog::error(
        "cannot make the state folder {}: {}; run fileballoond as root, or choose "
        "another with --state-dir",
        config.state_dir, failed.message());
    return kExitFailure;
  }
  // Destroyed last to first: what is in flight refers to what stands above it.
  EventLog events;
  const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
  // Threads are as nice as the one that starts them, and who is nice cannot always go back.
  std::optional<Vm::Workers> worker_pool;
  std::thread([&] {
    set_thread_niceness(kDiscardNiceness);
    worker_pool.emplace(std::min(4U, processors));
  }).join();
  Vm::Workers& workers = *worker_pool;
  asio::thread_pool attachers(2);
  asio::thread_pool pagers(2);
  asio::io_context control(1);
  Daemon daemon(control, {workers, pagers}, attachers, config, events);
  ControlServer server(control, config, daemon, events);
  try {
    server.lock();
  } catch (const std::runtime_error& error) {
    spdlog::error("{}", error.what());
    return kExitFailure;
  }
  asio::signal_set signals(control, SIGTERM, SIGINT);
  signals.async_wait([&](const error_code& error, int number) {
    if (error) {
      return;
    }
    spdlog::info("signal {}: stopping; guests keep their balloons", number);
    service_notify("STOPPING=1");
    control.stop();
  });
  int exit_status = 0;
  asio::co_spawn(control, bring_up(daemon, server, control, config, exit_status), asio::detached);
  control.run();
  // Every coroutine ends by itself, so that none is torn down with what it refers to half gone.
  server.stop();
  daemon.stop();
  error_code ignored;
  signals.cancel(ignored);
  control.restart();
  control.run_for(kStopPatience);
  attachers.join();
  pagers.join();
  workers.join();
  control.restart();
  control.run_for(kStopPatience);
  if (!control.stopped()) {
    spdlog::warn("something did not stop in time; leaving it");
    spdlog::shutdown();
    std::_Exit(exit_status);
  }
  return exit_status;
}

int run(int argc, char** argv) {
  CLI::App app(
      "fileballoond: gives the memory that guests put into their balloons back to the host");
  app.set_version_flag("--version", "fileballoond " FILEBALLOON_VERSION);
  CommandLine line;
  app.add_option("--config", line.config_file,
                 std::string("configuration file (default ") + kDefaultConfigFile + ")");
  app.add_option("--socket", line.socket,
                 std::string("control socket (default ") + kDefaultSocket + ")");
  app.add_option(
      "--state-dir", line.state_dir,
      std::string("where VMs are remembered over a restart (default ") + kDefaultStateDir + ")");
  app.add_option("--log-level", line.log_level, "trace, debug, info, warning, error or off");
  app.add_flag("--check-config", line.check_config, "check the configuration and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitBadConfig;
  }
  const Result<Config> config = load_config(line);
  if (!config) {
    std::cerr << "fileballoond: " << config.error().message << "\n";
    return kExitBadConfig;
  }
  if (line.check_config) {
    const std::string file = line.config_file.empty() ? kDefaultConfigFile : line.config_file;
    std::cout << (std::filesystem::exists(file)
                      ? file + " is good\n"
                      : "no configuration: " + file + " does not exist; the defaults are good\n");
    return 0;
  }
  spdlog::set_default_logger(spdlog::stderr_color_st("fileballoond"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
  spdlog::set_level(spdlog::level::from_str(config->log_level));
  std::signal(SIGPIPE, SIG_IGN);
  return serve(*config);
}

}  // namespace
}  // namespace fileballoon::host

int main(int argc, char** argv) {
  try {
    return fileballoon::host::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "fileballoond: " << error.what() << "\n";
    return 1;
  }
}
