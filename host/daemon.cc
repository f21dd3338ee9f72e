#include "host/daemon.h"

#include <fmt/format.h>

#include <fstream>
#include <limits>
#include <utility>

#include "host/attach_request.h"
#include "host/background.h"
#include "host/keep_running.h"
#include "host/vm_verbs.h"
#include "uffd/process.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

/// How often the daemon looks whether a VM that it waits for has come.
constexpr std::chrono::seconds kLookInterval{1};
/// The arbiter's shares are saved at most this often: writing the state file means fsync(2).
constexpr std::chrono::seconds kSaveInterval{1};

/// The pid in QEMU's -pidfile; 0 where there is none.
pid_t read_pid_file(const std::string& path) {
  std::ifstream in(path);
  long pid = 0;
  in >> pid;
  return in && pid > 0 && pid <= std::numeric_limits<pid_t>::max() ? static_cast<pid_t>(pid) : 0;
}

json::array to_array(const std::vector<std::string>& texts) {
  json::array array;
  for (const std::string& text : texts) {
    array.emplace_back(text);
  }
  return array;
}

[[noreturn]] void refuse(const std::string& message) {
  throw RpcFailure(RpcCode::refused, message);
}

/// Whether the process that `known` speaks of still runs as `pid`.
bool is_still_there(pid_t pid, const KnownVm& known) {
  const Result<Process> process = inspect_process(pid);
  return process && process->start_time == known.start_time;
}

/// What the configuration asks for.
Result<Vm::Wanted> wanted_by(const ConfiguredVm& configured, Bytes ram) {
  Vm::Wanted wanted;
  wanted.settings = configured.memory;
  wanted.ceiling = ram;
  const auto read = [ram](const std::string& text, Bytes& out) -> Result<void> {
    if (!text.empty()) {
      const Result<Bytes> size = parse_size(text, ram);
      if (!size) {
        return size.error();
      }
      out = *size;
    }
    return {};
  };
  for (const Result<void>& done :
       {read(configured.footprint, *wanted.ceiling), read(configured.floor, wanted.limits.floor),
        read(configured.minimum, wanted.settings.minimum)}) {
    if (!done) {
      return done.error();
    }
  }
  const Result<Limits> limits =
      make_limits(target_for_footprint(ram, *wanted.ceiling), wanted.limits.floor, ram);
  if (!limits) {
    return limits.error();
  }
  wanted.limits = *limits;
  if (const auto good = make_vm_settings({ram, wanted.settings.minimum, *wanted.ceiling}); !good) {
    return good.error();
  }
  return wanted;
}

}  // namespace

Daemon::Daemon(asio::io_context& control, Vm::Pools pools, asio::thread_pool& attachers,
               const Config& config, EventLog& events)
    : control_(control),
      pools_(pools),
      attachers_(attachers),
      config_(config),
      events_(events),
      state_file_(config.state_dir),
      save_timer_(control),
      look_timer_(control),
      arbiter_(
          control, events, config.arbiter, [this] { return present_vms(); },
          [this] { save_soon(); }) {}

Daemon::~Daemon() = default;

// ------------------------------------------------------------------------------ start and waiting

asio::awaitable<void> Daemon::start() {
  if (const Result<void> started = arbiter_.start(); !started) {
    throw std::runtime_error(started.error().message);  // before any VM is touched
  }
  LoadedState state = state_file_.load();
  if (state.problem) {
    events_.publish(Severity::error, "state-unreadable", "", *state.problem);
  }
  for (SavedVm& saved : state.vms) {
    const std::string name = saved.spec.name;
    waiting_[name] = {
        std::move(saved.spec), std::move(saved.known),
        Vm::Wanted{saved.limits, saved.ceiling,
                   config_.arbiter.mode == ArbiterMode::on ? saved.share : std::nullopt,
                   std::move(saved.memory)},
        nullptr, ""};
  }
  for (const ConfiguredVm& configured : config_.vms) {
    const auto [at, added] =
        waiting_.try_emplace(configured.spec.name, Waiting{configured.spec, {}, {}, nullptr, ""});
    at->second.configured = &configured;
  }
  co_await try_waiting();
  keep_running(control_, events_, "", "the look for VMs that are waited for",
               [this] { return look_for_waiting(); });
}

std::vector<std::shared_ptr<Vm>> Daemon::present_vms() const {
  std::vector<std::shared_ptr<Vm>> vms;
  for (const auto& [name, vm] : vms_) {
    if (!vm->is_leaving()) {
      vms.push_back(vm);
    }
  }
  return vms;
}

asio::awaitable<void> Daemon::look_for_waiting() {
  while (!stopping_) {
    look_timer_.expires_after(kLookInterval);
    error_code ignored;
    co_await look_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (!stopping_) {
      co_await try_waiting();
    }
  }
}

asio::awaitable<void> Daemon::try_waiting() {
  std::vector<std::string> names;
  for (const auto& [name, waiting] : waiting_) {
    names.push_back(name);
  }
  for (const std::string& name : names) {
    co_await try_one(name);
  }
}

asio::awaitable<void> Daemon::try_one(const std::string& name) {
  auto found = waiting_.find(name);
  if (found == waiting_.end() || attaching_.contains(name) || stopping_) {
    co_return;
  }
  Waiting& entry = found->second;
  if (entry.known && !is_still_there(entry.spec.pid, *entry.known)) {
    events_.publish(Severity::warning, "vm-gone", name,
                    fmt::format("pid {} ended while the daemon was not looking", entry.spec.pid));
    if (entry.configured == nullptr) {
      waiting_.erase(found);
      save();
      co_return;
    }
    entry.spec = entry.configured->spec;
    entry.known.reset();
    entry.wanted.reset();
  }
  if (!entry.known && entry.configured != nullptr && !entry.configured->pid_file.empty()) {
    entry.spec.pid = read_pid_file(entry.configured->pid_file);
    if (entry.spec.pid == 0) {
      entry.reason = fmt::format("no pid in {} yet", entry.configured->pid_file);
      co_return;
    }
  }
  std::string problem;
  try {
    check_free(entry.spec);
  } catch (const RpcFailure& failure) {
    problem = failure.what();
  }
  std::optional<Attachment> attachment;
  if (problem.empty()) {
    const pid_t pid = entry.spec.pid;
    attaching_.insert(name);
    attaching_pids_.insert(pid);
    Result<Attachment> attached = co_await attach_in_background(entry.spec, entry.known);
    attaching_.erase(name);
    attaching_pids_.erase(pid);
    found = waiting_.find(name);
    if (found == waiting_.end() || stopping_) {  // detached meanwhile
      if (attached && !entry.known) {
        auto given_back = give_back(std::move(*attached));
        co_await std::move(given_back);
      }
      co_return;
    }
    if (attached) {
      attachment = std::move(*attached);
    } else {
      problem = attached.error().message;
    }
  }
  Waiting& waiting = found->second;
  Vm::Wanted wanted;
  if (attachment && waiting.wanted) {
    wanted = *waiting.wanted;
  } else if (attachment && waiting.configured != nullptr) {
    const Result<Vm::Wanted> configured = wanted_by(*waiting.configured, attachment->ram->size());
    if (configured) {
      wanted = *configured;
    } else {
      problem = configured.error().message;
    }
  }
  if (!problem.empty()) {
    if (waiting.reason != problem) {
      waiting.reason = problem;
      events_.publish(Severity::warning, "attach-failed", name, problem + "; trying again");
    }
    co_return;
  }
  const bool again = waiting.known.has_value();
  if (again && waiting.configured != nullptr) {
    const StoreSettings& configured = waiting.configured->memory.store;
    const StoreSettings& kept = wanted.settings.store;
    if (configured.has_store() && kept.has_store() && configured != kept) {
      events_.publish(Severity::warning, "store-kept", name,
                      fmt::format("the configuration has another store ({}), but what is paged out "
                                  "lies in {}; detach the VM to change it",
                                  to_string(configured), to_string(kept)));
    }
  }
  waiting_.erase(found);
  adopt(std::move(*attachment), std::move(wanted),
        again ? "found again after a restart" : "as configured");
  save();
}

// -------------------------------------------------------------------------------- attach, detach

asio::awaitable<Result<Attachment>> Daemon::attach_in_background(
    const VmSpec& spec, const std::optional<KnownVm>& known) {
  // Named, as everywhere: GCC 12 destroys a temporary of a co_await twice when it has captures.
  auto attach = [spec = VmSpec(spec), known = std::optional<KnownVm>(known)] {
    return attach_vm(spec, known);
  };
  co_return co_await run_on(attachers_, attach);
}

void Daemon::check_free(const VmSpec& spec) const {
  if (vms_.contains(spec.name) || attaching_.contains(spec.name)) {
    refuse(fmt::format("there is a VM named '{}' already; detach it first or choose another name",
                       spec.name));
  }
  for (const auto& [name, vm] : vms_) {
    if (vm->spec().pid == spec.pid) {
      refuse(fmt::format("pid {} is attached already, as VM '{}'", spec.pid, name));
    }
    if (vm->spec().channel == spec.channel) {
      refuse(fmt::format("the channel {} is in use by VM '{}'", spec.channel, name));
    }
  }
  if (attaching_pids_.contains(spec.pid)) {
    refuse(fmt::format("pid {} is being attached just now", spec.pid));
  }
  if (vms_.size() + attaching_.size() >= config_.max_vms) {
    refuse(fmt::format("there are {} VMs, the most that the configuration allows (max_vms)",
                       vms_.size()));
  }
}

std::shared_ptr<Vm> Daemon::adopt(Attachment attachment, Vm::Wanted wanted, std::string_view how) {
  const std::string name = attachment.spec.name;
  // A VM that is found again with a store may have frames in it already.
  const bool may_be_paged = attachment.was_known && wanted.settings.store.has_store();
  if (!wanted.settings.store.has_store()) {
    wanted.settings.store = config_.store;
  }
  if (!attachment.paging_hazards.empty() && wanted.settings.store.has_store() && !may_be_paged) {
    wanted.settings.store = {};  // ballooned, and not paged
    attachment.known.warnings.push_back("not paged: " + attachment.paging_hazards.front());
  }
  auto vm =
      std::make_shared<Vm>(control_, pools_, events_, std::move(attachment), wanted,
                           Vm::Options{config_.write_timeout, config_.budget_dir, config_.socket});
  vms_[name] = vm;
  events_.publish(
      Severity::info, "vm-attached", name,
      fmt::format("pid {} with {} of RAM, {}", vm->spec().pid, to_string(vm->ram_size()), how),
      {{"pid", vm->spec().pid}});
  for (const std::string& warning : vm->warnings()) {
    events_.publish(Severity::warning, "warning", name, warning);
  }
  vm->start([this, name, raw = vm.get()] { vm_is_gone(name, raw); }, [this] { arbiter_.hurry(); });
  return vm;
}

void Daemon::vm_is_gone(const std::string& name, const Vm* vm) {
  const auto found = vms_.find(name);
  if (found == vms_.end() || found->second.get() != vm) {
    return;
  }
  const pid_t pid = vm->spec().pid;
  vms_.erase(found);  // the Vm lives on until its coroutines have ended
  events_.publish(Severity::warning, "vm-gone", name,
                  fmt::format("pid {} has exited; its memory is released", pid), {{"pid", pid}});
  events_.forget(name);
  for (const ConfiguredVm& configured : config_.vms) {
    if (configured.spec.name == name) {
      waiting_[name] = {configured.spec, {}, {}, &configured, "it has exited"};
    }
  }
  save();
}

asio::awaitable<json::value> Daemon::attach(const json::object& raw) {
  AttachRequest request(raw, config_.refault);
  const VmSpec& spec = request.spec;
  if (const auto waiting = waiting_.find(spec.name); waiting != waiting_.end()) {
    refuse(fmt::format("VM '{}' is waited for ({}); detach it first", spec.name,
                       waiting->second.reason));
  }
  if (vms_.contains(spec.name) && (raw.contains("store_memory") || raw.contains("store_path"))) {
    refuse(
        fmt::format("VM '{}' is attached already, and its store cannot be changed while it is; "
                    "detach it, which brings its paged-out frames back, and attach it with the "
                    "other store",
                    spec.name));
  }
  check_free(spec);

  const std::optional<KnownVm> unknown;
  attaching_.insert(spec.name);
  attaching_pids_.insert(spec.pid);
  Result<Attachment> attached = co_await attach_in_background(spec, unknown);
  std::string problem = attached ? "" : attached.error().message;
  Vm::Wanted wanted;
  if (attached) {
    try {
      wanted = request.wanted(attached->ram->size());
      problem = co_await make_store(*attached, wanted.settings.store);
    } catch (const RpcFailure& failure) {
      problem = failure.what();
    }
    if (problem.empty() && stopping_) {
      problem = "the daemon is stopping";
    }
    if (!problem.empty()) {
      auto given_back = give_back(std::move(*attached));
      co_await std::move(given_back);
    }
  }
  attaching_.erase(spec.name);
  attaching_pids_.erase(spec.pid);
  if (!problem.empty()) {
    refuse(problem);
  }
  const std::shared_ptr<Vm> vm = adopt(std::move(*attached), std::move(wanted), "by request");
  save();
  json::object result = vm->summary();
  result["warnings"] = to_array(vm->warnings());
  co_return result;
}

/// Undoes an attach that nobody wants any more: no keeper stays behind.
asio::awaitable<void> Daemon::give_back(Attachment attachment) {
  attachment.ram->give_back();
  auto end = [ram = std::shared_ptr<RamOwner>(std::move(attachment.ram))]() mutable {
    ram.reset();
    return true;
  };
  co_await run_on(attachers_, end);
}

/// Makes the store that was asked for in the VM's keeper; says why it cannot be made.
asio::awaitable<std::string> Daemon::make_store(const Attachment& attachment,
                                                const StoreSettings& store) {
  if (!store.has_store()) {
    co_return "";
  }
  const std::string socket = attachment.ram->keeper_socket();
  if (socket.empty()) {
    co_return "a store for paged-out frames needs --refault uffd";
  }
  if (!attachment.paging_hazards.empty()) {
    co_return attachment.paging_hazards.front();
  }
  const auto options = paging_options(store, attachment.spec.name, config_.budget_dir);
  auto start = [socket, options] { return start_paging(socket, options); };
  const Result<void> started = co_await run_on(attachers_, start);
  co_return started ? "" : started.error().message;
}

asio::awaitable<json::value> Daemon::detach(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name"});
  const std::string name = params.text("name");
  if (waiting_.erase(name) > 0) {
    save();
    events_.publish(Severity::info, "vm-detached", name, "no longer waited for");
    co_return json::object{{"name", name}};
  }
  const std::shared_ptr<Vm> vm = find(name);
  if (vm->is_leaving()) {
    refuse(fmt::format("VM '{}' is being detached already", name));
  }
  if (const Result<void> back = co_await vm->bring_back(); !back) {
    refuse(back.error().message);
  }
  if (const auto now = vms_.find(name); now == vms_.end() || now->second != vm) {
    refuse(fmt::format("VM '{}' exited while it was being detached", name));
  }
  vms_.erase(name);
  attaching_.insert(name);  // the name is free again when the RAM is
  attaching_pids_.insert(vm->spec().pid);
  co_await vm->detach();
  attaching_.erase(name);
  attaching_pids_.erase(vm->spec().pid);
  save();
  events_.publish(Severity::info, "vm-detached", name, "its balloon stays as it is");
  events_.forget(name);
  co_return json::object{{"name", name}};
}

// ------------------------------------------------------------------------------ limits and reports

std::shared_ptr<Vm> Daemon::find(const std::string& name) const {
  if (const auto found = vms_.find(name); found != vms_.end()) {
    return found->second;
  }
  if (const auto waiting = waiting_.find(name); waiting != waiting_.end()) {
    refuse(fmt::format("VM '{}' is not attached yet: {}", name, waiting->second.reason));
  }
  std::string known;
  for (const auto& [other, vm] : vms_) {
    known += (known.empty() ? "" : ", ") + other;
  }
  throw RpcFailure(RpcCode::unknown_vm,
                   fmt::format("unknown VM '{}'; {}", name,
                               known.empty() ? "no VM is attached" : "attached are " + known));
}

json::value Daemon::list() const {
  json::array array;
  for (const auto& [name, vm] : vms_) {
    array.push_back(vm->summary());
  }
  for (const auto& [name, waiting] : waiting_) {
    array.push_back(json::object{{"name", name},
                                 {"pid", waiting.spec.pid},
                                 {"state", "waiting"},
                                 {"reason", waiting.reason},
                                 {"band", waiting.spec.band}});
  }
  return array;
}

json::value Daemon::stats(const json::object& raw) const {
  const RpcParams params(raw);
  params.allow_only({"name"});
  const auto stats_of = [this](const Vm& vm) {
    json::object object = vm.stats();
    object["arbiter"] = arbiter_.describe_vm(vm.spec().name);
    return object;
  };
  if (const auto name = params.optional_text("name")) {
    return stats_of(*find(*name));
  }
  json::array array;
  for (const auto& [name, vm] : vms_) {
    array.push_back(stats_of(*vm));
  }
  return array;
}

json::value Daemon::arbiter(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"dry_run", "mode", "limit"});
  const bool dry_run = params.flag("dry_run");
  if (const auto limit = params.optional_text("limit"); limit && *limit == "none") {
    arbiter_.set_limit(std::nullopt);
  } else if (raw.contains("limit")) {
    const Bytes bytes = params.size("limit", std::nullopt);
    if (bytes == Bytes()) {
      refuse("a limit of 0 would leave no VM any memory; write 'none' for no limit");
    }
    arbiter_.set_limit(bytes);
  }
  if (const auto text = params.optional_text("mode")) {
    const Result<ArbiterMode> mode = parse_arbiter_mode(*text);
    if (!mode) {
      refuse(mode.error().message);
    }
    if (const Result<void> done = arbiter_.set_mode(*mode); !done) {
      refuse(done.error().message);
    }
    events_.publish(Severity::info, "arbiter-mode-set", "",
                    fmt::format("the arbiter is {}", to_string(*mode)));
  }
  return arbiter_.describe(dry_run);
}

asio::awaitable<json::value> Daemon::call(std::string_view method, const json::object& params) {
  if (method == "attach") {
    co_return co_await attach(params);
  }
  if (method == "detach") {
    co_return co_await detach(params);
  }
  if (const VmVerb verb = find_vm_verb(method)) {
    Vm& vm = *find(RpcParams(params).text("name"));
    if (vm.is_leaving()) {
      refuse(fmt::format("VM '{}' is being detached", vm.spec().name));
    }
    co_return verb(vm, params, {events_, [this] { save(); }});
  }
  if (method == "stats") {
    co_return stats(params);
  }
  if (method == "arbiter") {
    co_return arbiter(params);
  }
  if (method == "list") {
    RpcParams(params).allow_only({});
    co_return list();
  }
  throw RpcFailure(RpcCode::method_not_found, fmt::format("unknown method '{}'", method));
}

// ------------------------------------------------------------------------------------- state, end

void Daemon::save_soon() {
  const auto now = Vm::Clock::now();
  if (now - last_save_ >= kSaveInterval) {
    save();
  } else if (!std::exchange(save_due_, true)) {
    save_timer_.expires_at(last_save_ + kSaveInterval);
    save_timer_.async_wait([this](const error_code& cancelled) {
      if (!cancelled && save_due_) {
        save();
      }
    });
  }
}

void Daemon::save() {
  last_save_ = Vm::Clock::now();
  save_due_ = false;
  std::vector<SavedVm> saved;
  for (const auto& [name, vm] : vms_) {
    saved.push_back({vm->spec(), vm->known(), Limits{vm->limits().target, vm->floor()},
                     vm->policy().ceiling(), vm->policy().share(), vm->policy().settings()});
  }
  for (const auto& [name, waiting] : waiting_) {
    if (waiting.known) {
      const Vm::Wanted wanted = waiting.wanted.value_or(Vm::Wanted{});
      saved.push_back({waiting.spec, *waiting.known, wanted.limits, wanted.ceiling, wanted.share,
                       wanted.settings});
    }
  }
  const Result<void> done = state_file_.save(saved);
  if (!done && !state_failing_) {
    events_.publish(Severity::error, "state-not-saved", "", done.error().message);
  } else if (done && state_failing_) {
    events_.publish(Severity::info, "state-saved", "", "the state file can be written again");
  }
  state_failing_ = !done;
}

void Daemon::stop() {
  if (save_due_) {
    save();
  }
  stopping_ = true;
  save_timer_.cancel();
  look_timer_.cancel();
  arbiter_.stop();
  for (const auto& [name, vm] : vms_) {
    vm->abandon();
  }
}

}  // namespace fileballoon::host
