#include "host/daemon.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fstream>
#include <limits>
#include <utility>

#include "uffd/process.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

/// How often the daemon looks whether a VM that it waits for has come.
constexpr std::chrono::seconds kLookInterval{1};
/// Limits are saved at most this often: writing the state file means fsync(2).
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

/// The limits that the configuration asks for.
Result<Limits> limits_of(const ConfiguredVm& configured, Bytes ram) {
  Bytes target;
  Bytes floor;
  if (!configured.footprint.empty()) {
    const Result<Bytes> footprint = parse_size(configured.footprint, ram);
    if (!footprint) {
      return footprint.error();
    }
    target = target_for_footprint(ram, *footprint);
  }
  if (!configured.floor.empty()) {
    const Result<Bytes> parsed = parse_size(configured.floor, ram);
    if (!parsed) {
      return parsed.error();
    }
    floor = *parsed;
  }
  return make_limits(target, floor, ram);
}

}  // namespace

Daemon::Daemon(asio::io_context& control, Vm::Workers& workers, asio::thread_pool& attachers,
               const Config& config, EventLog& events)
    : control_(control),
      workers_(workers),
      attachers_(attachers),
      config_(config),
      events_(events),
      state_file_(config.state_dir),
      save_timer_(control),
      look_timer_(control) {}

Daemon::~Daemon() = default;

// ------------------------------------------------------------------------------ start and waiting

asio::awaitable<void> Daemon::start() {
  LoadedState state = state_file_.load();
  if (state.problem) {
    events_.publish(Severity::error, "state-unreadable", "", *state.problem);
  }
  for (SavedVm& saved : state.vms) {
    const std::string name = saved.spec.name;
    waiting_[name] = {std::move(saved.spec), std::move(saved.known), saved.limits, nullptr, ""};
  }
  for (const ConfiguredVm& configured : config_.vms) {
    const auto [at, added] =
        waiting_.try_emplace(configured.spec.name, Waiting{configured.spec, {}, {}, nullptr, ""});
    at->second.configured = &configured;
  }
  co_await try_waiting();
  asio::co_spawn(control_, look_for_waiting(), asio::detached);
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
    entry.limits.reset();
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
    if (found == waiting_.end() || stopping_) {
      co_return;  // detached meanwhile
    }
    if (attached) {
      attachment = std::move(*attached);
    } else {
      problem = attached.error().message;
    }
  }
  Waiting& waiting = found->second;
  Limits limits;
  if (attachment && waiting.limits) {
    limits = *waiting.limits;
  } else if (attachment && waiting.configured != nullptr) {
    const Result<Limits> configured = limits_of(*waiting.configured, attachment->ram->size());
    if (configured) {
      limits = *configured;
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
  waiting_.erase(found);
  adopt(std::move(*attachment), limits, again ? "found again after a restart" : "as configured");
  save();
}

// -------------------------------------------------------------------------------- attach, detach

asio::awaitable<Result<Attachment>> Daemon::attach_in_background(
    const VmSpec& spec, const std::optional<KnownVm>& known) {
  // Named objects, not temporaries of the co_await: GCC 12 copies the captures of those bitwise.
  auto work = [spec = VmSpec(spec), known = std::optional<KnownVm>(known)]()
      -> asio::awaitable<std::unique_ptr<Result<Attachment>>> {
    co_return std::make_unique<Result<Attachment>>(attach_vm(spec, known));
  };
  auto running = asio::co_spawn(attachers_, std::move(work), asio::use_awaitable);
  auto result = co_await std::move(running);
  co_return std::move(*result);
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

std::shared_ptr<Vm> Daemon::adopt(Attachment attachment, const Limits& limits,
                                  std::string_view how) {
  const std::string name = attachment.spec.name;
  auto vm = std::make_shared<Vm>(control_, workers_, events_, std::move(attachment), limits,
                                 Vm::Options{config_.write_timeout});
  vms_[name] = vm;
  events_.publish(
      Severity::info, "vm-attached", name,
      fmt::format("pid {} with {} of RAM, {}", vm->spec().pid, to_string(vm->ram_size()), how),
      {{"pid", vm->spec().pid}});
  for (const std::string& warning : vm->warnings()) {
    events_.publish(Severity::warning, "warning", name, warning);
  }
  vm->start([this, name, raw = vm.get()] { vm_is_gone(name, raw); });
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
  const RpcParams params(raw);
  params.allow_only({"name", "pid", "channel", "qmp", "refault", "band"});
  VmSpec spec;
  spec.name = params.text("name");
  spec.channel = params.text("channel");
  spec.qmp = params.optional_text("qmp").value_or("");
  const std::int64_t pid = params.integer("pid");
  const std::int64_t band = params.optional_integer("band").value_or(0);
  const auto refault = params.optional_text("refault");
  const Result<RefaultMode> mode =
      refault ? parse_refault_mode(*refault) : Result<RefaultMode>(config_.refault);
  for (const auto& check : {check_vm_name(spec.name), check_band(band)}) {
    if (!check) {
      throw RpcFailure(RpcCode::invalid_params, check.error().message);
    }
  }
  if (!mode) {
    throw RpcFailure(RpcCode::invalid_params, mode.error().message);
  }
  if (pid <= 0 || pid > std::numeric_limits<pid_t>::max()) {
    throw RpcFailure(RpcCode::invalid_params, fmt::format("{} is no process id", pid));
  }
  spec.pid = static_cast<pid_t>(pid);
  spec.band = static_cast<int>(band);
  spec.refault = *mode;
  if (const auto waiting = waiting_.find(spec.name); waiting != waiting_.end()) {
    refuse(fmt::format("VM '{}' is waited for ({}); detach it first", spec.name,
                       waiting->second.reason));
  }
  check_free(spec);

  const std::optional<KnownVm> unknown;
  attaching_.insert(spec.name);
  attaching_pids_.insert(spec.pid);
  Result<Attachment> attached = co_await attach_in_background(spec, unknown);
  attaching_.erase(spec.name);
  attaching_pids_.erase(spec.pid);
  if (!attached) {
    refuse(attached.error().message);
  }
  if (stopping_) {
    refuse("the daemon is stopping");
  }
  const std::shared_ptr<Vm> vm = adopt(std::move(*attached), Limits{}, "by request");
  save();
  json::object result = vm->summary();
  result["warnings"] = to_array(vm->warnings());
  co_return result;
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

json::value Daemon::set_limits(Vm& vm, Bytes target, Bytes floor) {
  const Result<Limits> limits = make_limits(target, floor, vm.ram_size());
  if (!limits) {
    refuse(limits.error().message);
  }
  if (*limits != vm.limits()) {
    vm.set_limits(*limits);
    save_soon();
    events_.publish(
        Severity::info, "limits-set", vm.spec().name,
        fmt::format("target {}, floor {}", to_string(limits->target), to_string(limits->floor)),
        {{"target_bytes", limits->target.count()}, {"floor_bytes", limits->floor.count()}});
  }
  return vm.summary();
}

json::value Daemon::mem_set(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "size"});
  Vm& vm = *find(params.text("name"));
  const Bytes footprint = params.size("size", vm.ram_size());
  if (footprint > vm.ram_size()) {
    refuse(fmt::format("{} is above the VM's RAM of {}; a footprint cannot be larger",
                       to_string(footprint), to_string(vm.ram_size())));
  }
  return set_limits(vm, target_for_footprint(vm.ram_size(), footprint), vm.limits().floor);
}

json::value Daemon::mem_floor(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "size"});
  Vm& vm = *find(params.text("name"));
  return set_limits(vm, vm.limits().target, params.size("size", vm.ram_size()));
}

json::value Daemon::epoch(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "advance"});
  Vm& vm = *find(params.text("name"));
  if (const auto* advance = raw.if_contains("advance")) {
    if (!advance->is_bool()) {
      refuse("parameter 'advance' must be true or false");
    }
    if (advance->as_bool()) {
      vm.advance_epoch();
    }
  }
  return json::object{{"name", vm.spec().name}, {"epoch", vm.epoch()}, {"state", vm.state()}};
}

json::value Daemon::purge(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "amount"});
  Vm& vm = *find(params.text("name"));
  // All of it: a guest cannot have more page cache than RAM.
  const Bytes amount =
      raw.contains("amount") ? params.size("amount", vm.ram_size()) : vm.ram_size();
  if (!vm.purge(amount)) {
    refuse(fmt::format("{} cannot be asked now ({}): its agent (balloonfs) must be connected",
                       vm.spec().name, vm.state()));
  }
  events_.publish(Severity::info, "purge", vm.spec().name,
                  fmt::format("asked for {} of page cache", to_string(amount)),
                  {{"amount_bytes", amount.count()}});
  return json::object{{"name", vm.spec().name}, {"amount_bytes", amount.count()}};
}

json::value Daemon::cache(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "mode"});
  Vm& vm = *find(params.text("name"));
  const Result<CacheMode> mode = parse_cache_mode(params.text("mode"));
  if (!mode) {
    refuse(mode.error().message);
  }
  vm.set_cache(*mode);
  events_.publish(Severity::info, "cache-mode-set", vm.spec().name,
                  fmt::format("cold page cache: {}", to_string(*mode)));
  return json::object{{"name", vm.spec().name}, {"mode", to_string(*mode)}, {"state", vm.state()}};
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
  if (const auto name = params.optional_text("name")) {
    return find(*name)->stats();
  }
  json::array array;
  for (const auto& [name, vm] : vms_) {
    array.push_back(vm->stats());
  }
  return array;
}

asio::awaitable<json::value> Daemon::call(std::string_view method, const json::object& params) {
  if (method == "attach") {
    co_return co_await attach(params);
  }
  if (method == "detach") {
    co_return co_await detach(params);
  }
  if (method == "mem-set") {
    co_return mem_set(params);
  }
  if (method == "mem-floor") {
    co_return mem_floor(params);
  }
  if (method == "epoch") {
    co_return epoch(params);
  }
  if (method == "purge") {
    co_return purge(params);
  }
  if (method == "cache") {
    co_return cache(params);
  }
  if (method == "stats") {
    co_return stats(params);
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
    saved.push_back({vm->spec(), vm->known(), vm->limits()});
  }
  for (const auto& [name, waiting] : waiting_) {
    if (waiting.known) {
      saved.push_back({waiting.spec, *waiting.known, waiting.limits.value_or(Limits{})});
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
  for (const auto& [name, vm] : vms_) {
    vm->abandon();
  }
}

}  // namespace fileballoon::host
