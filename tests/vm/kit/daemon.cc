#include "tests/vm/kit/daemon.h"

#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "tests/eventually.h"
#include "tests/vm/kit/guest_image.h"

namespace fileballoon::vmkit {
namespace {

constexpr auto kStartLimit = std::chrono::seconds(20);
constexpr auto kStopLimit = std::chrono::seconds(10);
constexpr auto kConnectLimit = std::chrono::seconds(60);
constexpr auto kConnectPoll = std::chrono::milliseconds(20);
constexpr auto kStartPoll = std::chrono::milliseconds(5);

}  // namespace

Daemon::Daemon(std::string config) : dir_("daemon"), socket_(dir_.file("control.sock")) {
  std::ofstream file(dir_.file("fileballoond.toml"));
  file << "socket = \"" << socket_ << "\"\nstate_dir = \"" << dir_.file("state") << "\"\n"
       << config << '\n';
  file.close();
  start();
}

void Daemon::start() {
  control_.reset();
  process_ = std::make_unique<ChildProcess>(
      std::vector<std::string>{daemon_path(), "--config", dir_.file("fileballoond.toml")},
      dir_.file("log"));
  auto client = host::JsonLineClient::connect(socket_);
  const auto answers = [&] {
    if (!client) client = host::JsonLineClient::connect(socket_);
    return client.has_value();
  };
  (void)eventually([&] { return answers() || !process_->running(); }, kStartLimit, kStartPoll);
  if (!client) {
    throw std::runtime_error("fileballoond does not come up: " + client.error().message + "\n" +
                             log_tail());
  }
  control_ = std::make_unique<host::JsonLineClient>(*std::move(client));
}

void Daemon::kill() {
  control_.reset();
  process_->signal(SIGKILL);
  process_->wait(kStopLimit);
}

bool Daemon::terminate() {
  control_.reset();
  process_->signal(SIGTERM);
  const auto status = process_->wait(kStopLimit);
  return status && WIFEXITED(*status) && WEXITSTATUS(*status) == 0;
}

host::JsonLineClient& Daemon::control() {
  if (!control_) throw std::runtime_error("fileballoond is not running");
  return *control_;
}

boost::json::value Daemon::call(std::string_view method, Object params) {
  auto answer = control().call(method, std::move(params));
  if (!answer) {
    throw std::runtime_error(std::string(method) + ": " + answer.error().message +
                             (process_->running() ? "" : "\n" + log_tail()));
  }
  return *std::move(answer);
}

CommandResult Daemon::ctl(std::vector<std::string> words) {
  std::vector<std::string> argv{ctl_path(), "--socket", socket_};
  argv.insert(argv.end(), words.begin(), words.end());
  return run_command(argv);
}

void Daemon::attach(const std::string& name, const Vm& vm, const std::string& refault,
                    const Object& more) {
  Object params{{"name", name},
                {"pid", vm.pid()},
                {"channel", vm.channel_socket()},
                {"qmp", vm.daemon_qmp_socket()},
                {"refault", refault}};
  for (const auto& [key, value] : more) {
    params[key] = value;
  }
  call("attach", std::move(params));
}

void Daemon::set_target(const std::string& name, Bytes target) {
  const Bytes ram(stats(name).at("ram_bytes").to_number<std::uint64_t>());
  call("mem-set", {{"name", name}, {"size", (ram - target).count()}});
}

void Daemon::set_floor(const std::string& name, Bytes floor) {
  call("mem-floor", {{"name", name}, {"size", floor.count()}});
}

bool Daemon::connected(const std::string& name) { return stats(name).at("state") == "connected"; }

void Daemon::wait_connected(const std::string& name) {
  if (!eventually([&] { return connected(name); }, kConnectLimit, kConnectPoll)) {
    throw std::runtime_error("agent and daemon do not find each other\n" + log_tail());
  }
}

Daemon::Object Daemon::stats(const std::string& name) {
  return call("stats", {{"name", name}}).as_object();
}

std::uint64_t Daemon::counter(const std::string& name, std::string_view counter) {
  return stats(name).at("counters").as_object().at(counter).to_number<std::uint64_t>();
}

std::string Daemon::log_tail(std::size_t lines) const { return tail_of(dir_.file("log"), lines); }

std::vector<pid_t> keepers_of(pid_t vmm) {
  const std::string option = std::string("--pid") + '\0' + std::to_string(vmm) + '\0';
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "cmdline");
    const std::string line((std::istreambuf_iterator<char>(file)), {});
    if (line.substr(0, line.find('\0')).ends_with("fileballoon-faultd") &&
        line.find(option) != std::string::npos) {
      found.push_back(std::stoi(name));
    }
  }
  return found;
}

}  // namespace fileballoon::vmkit
