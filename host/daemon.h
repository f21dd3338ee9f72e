// Daemon: the VMs of this host and what operators may do with them. It attaches and detaches, keeps
// limits, remembers its VMs over a restart and finds them again, and attaches the VMs of the
// configuration as soon as their processes are there. The control server calls it. Control thread
// only; what blocks runs on worker threads.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "host/arbiter_loop.h"
#include "host/asio.h"
#include "host/config.h"
#include "host/event_log.h"
#include "host/rpc.h"
#include "host/state_file.h"
#include "host/vm.h"

namespace fileballoon::host {

class Daemon {
 public:
  /// Attachers wait for QEMU's monitors. All arguments, and what they refer to, outlive this.
  Daemon(asio::io_context& control, Vm::Pools pools, asio::thread_pool& attachers,
         const Config& config, EventLog& events);
  ~Daemon();

  /// Finds the VMs of the state file and of the configuration, and starts the arbiter; then goes on
  /// looking for VMs that are not there yet. Throws std::runtime_error where another arbiter
  /// divides this host.
  [[nodiscard]] asio::awaitable<void> start();
  /// Lets go of every VM without a word to the guests; the state file keeps them.
  void stop();

  /// One call of the control socket (all but event subscriptions). Throws RpcFailure.
  [[nodiscard]] asio::awaitable<boost::json::value> call(std::string_view method,
                                                         const boost::json::object& params);

  /// The VM of that name. Throws RpcFailure, naming the VMs that there are.
  [[nodiscard]] std::shared_ptr<Vm> find(const std::string& name) const;

 private:
  /// A VM that should be managed and is not yet.
  struct Waiting {
    VmSpec spec;
    std::optional<KnownVm> known;      // from the state file
    std::optional<Vm::Wanted> wanted;  // likewise
    const ConfiguredVm* configured = nullptr;
    std::string reason;  // why it is not attached
  };

  [[nodiscard]] asio::awaitable<boost::json::value> attach(const boost::json::object& params);
  [[nodiscard]] asio::awaitable<boost::json::value> detach(const boost::json::object& params);
  [[nodiscard]] boost::json::value list() const;
  [[nodiscard]] boost::json::value arbiter(const boost::json::object& params);
  [[nodiscard]] std::vector<std::shared_ptr<Vm>> present_vms() const;
  [[nodiscard]] boost::json::value stats(const boost::json::object& params) const;
  [[nodiscard]] asio::awaitable<std::string> make_store(const Attachment& attachment,
                                                        const StoreSettings& store);

  /// attach_vm() on a worker thread. The arguments are copied before it first suspends.
  [[nodiscard]] asio::awaitable<Result<Attachment>> attach_in_background(
      const VmSpec& spec, const std::optional<KnownVm>& known);
  [[nodiscard]] asio::awaitable<void> give_back(Attachment attachment);
  /// Manages what was attached.
  std::shared_ptr<Vm> adopt(Attachment attachment, Vm::Wanted wanted, std::string_view how);
  [[nodiscard]] asio::awaitable<void> try_waiting();
  [[nodiscard]] asio::awaitable<void> try_one(const std::string& name);
  [[nodiscard]] asio::awaitable<void> look_for_waiting();
  void vm_is_gone(const std::string& name, const Vm* vm);
  void check_free(const VmSpec& spec) const;
  void save();
  /// save(), but at most once per kSaveInterval: for shares, which the arbiter may move all the
  /// time and finds again by itself. What an operator asked for is saved before the answer.
  void save_soon();

  asio::io_context& control_;
  Vm::Pools pools_;
  asio::thread_pool& attachers_;
  const Config& config_;
  EventLog& events_;
  StateFile state_file_;
  bool state_failing_ = false;
  asio::steady_timer save_timer_;
  asio::steady_timer look_timer_;
  Vm::Clock::time_point last_save_{};
  bool save_due_ = false;
  std::map<std::string, std::shared_ptr<Vm>> vms_;
  std::map<std::string, Waiting> waiting_;
  std::set<std::string> attaching_;  // names
  std::set<pid_t> attaching_pids_;
  bool stopping_ = false;
  ArbiterLoop arbiter_;  // last: it asks for the VMs
};

}  // namespace fileballoon::host
