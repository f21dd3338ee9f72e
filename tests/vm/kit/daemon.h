// Daemon: a fileballoond of a test's own, with its socket, state and log in a private folder, and
// calls to it, as JSON-RPC or through fileballoonctl. It can be killed and started again with its
// state kept. Refusals are std::runtime_error with the daemon's own words. One thread at a time.
#pragma once

#include <boost/json/object.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fileballoon/bytes.h"
#include "host/json_line_client.h"
#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/temp_dir.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::vmkit {

class Daemon {
 public:
  using Object = boost::json::object;

  /// Starts one and waits for its socket. Throws with its log where it does not come up. `config`
  /// is added to the generated TOML.
  explicit Daemon(std::string config = {});

  /// Starts it again after kill() or a crash.
  void start();
  /// SIGKILL, and waits for the end: no chance to say goodbye.
  void kill();
  /// SIGTERM; true if it ended by itself with status 0.
  [[nodiscard]] bool terminate();
  [[nodiscard]] ChildProcess& process() { return *process_; }

  boost::json::value call(std::string_view method, Object params = {});
  /// fileballoonctl --socket … WORDS.
  CommandResult ctl(std::vector<std::string> words);

  /// Attaches a VM of the kit by its channel and the daemon's monitor.
  /// `more`: further parameters.
  void attach(const std::string& name, const Vm& vm, const std::string& refault = "kernel",
              const Object& more = {});
  /// Sets the balloon's target: the footprint asked for is RAM minus that.
  void set_target(const std::string& name, Bytes target);
  void set_floor(const std::string& name, Bytes floor);
  [[nodiscard]] Object stats(const std::string& name);
  /// True while an agent's session stands.
  [[nodiscard]] bool connected(const std::string& name);
  /// Waits until then. Throws with the daemon's log where that takes more than a minute.
  void wait_connected(const std::string& name);
  /// One number of stats()["counters"].
  [[nodiscard]] std::uint64_t counter(const std::string& name, std::string_view counter);

  [[nodiscard]] std::string log_tail(std::size_t lines = 40) const;
  [[nodiscard]] const std::string& socket() const { return socket_; }

 private:
  host::JsonLineClient& control();

  TempDir dir_;
  std::string socket_;
  std::unique_ptr<ChildProcess> process_;
  std::unique_ptr<host::JsonLineClient> control_;
};

/// The keepers of the VMM `vmm` and their guards: processes of their own that a daemon has started
/// and that may outlive it.
[[nodiscard]] std::vector<pid_t> keepers_of(pid_t vmm);

}  // namespace fileballoon::vmkit
