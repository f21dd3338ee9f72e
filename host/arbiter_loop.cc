#include "host/arbiter_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "fileballoon/ceilings.h"
#include "fileballoon/elapsed.h"
#include "host/keep_running.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

constexpr std::array<std::pair<std::string_view, ArbiterMode>, 3> kModes = {
    {{"off", ArbiterMode::off}, {"dry-run", ArbiterMode::dry_run}, {"on", ArbiterMode::on}}};

}  // namespace

Result<ArbiterMode> parse_arbiter_mode(std::string_view text) {
  for (const auto& [name, mode] : kModes) {
    if (name == text) {
      return mode;
    }
  }
  return Error{fmt::format("unknown mode '{}'; write off, dry-run or on", text.substr(0, 40))};
}

std::string_view to_string(ArbiterMode mode) {
  return kModes.at(static_cast<std::size_t>(mode)).first;
}

ArbiterLoop::ArbiterLoop(asio::io_context& control, EventLog& events, ArbiterSettings settings,
                         VmList vms, std::function<void()> on_change, HostMemory memory)
    : control_(control),
      events_(events),
      settings_(std::move(settings)),
      vms_(std::move(vms)),
      on_change_(std::move(on_change)),
      memory_(std::move(memory)),
      arbiter_(settings_.arbiter),
      timer_(control) {}

ArbiterLoop::~ArbiterLoop() = default;

Result<void> ArbiterLoop::start() {
  const ArbiterMode mode = std::exchange(settings_.mode, ArbiterMode::off);
  if (const Result<void> done = set_mode(mode); !done) {
    return done.error();
  }
  keep_running(control_, events_, "", "the arbiter", [this] { return run(); });
  return {};
}

void ArbiterLoop::stop() {
  stopping_ = true;
  timer_.cancel();
}

void ArbiterLoop::hurry() {
  if (settings_.mode != ArbiterMode::off && Clock::now() - last_tick_ >= kLeastPause) {
    timer_.cancel();
  }
}

Result<void> ArbiterLoop::set_mode(ArbiterMode mode) {
  if (mode == ArbiterMode::on && !lock_) {
    Result<ArbiterLock> lock = ArbiterLock::take(settings_.lock);
    if (!lock) {
      return lock.error();
    }
    lock_ = std::move(*lock);
  }
  if (mode != ArbiterMode::on) {
    lock_.reset();
    if (settings_.mode == ArbiterMode::on) {
      release_all();
    }
  }
  if (mode == ArbiterMode::off) {
    arbiter_ = Arbiter(settings_.arbiter);
    members_.clear();
    has_ticked_ = false;
  }
  settings_.mode = mode;
  timer_.cancel();
  return {};
}

void ArbiterLoop::release_all() {
  for (const auto& vm : vms_()) {
    vm->policy().clear_share();
    vm->steer();
  }
  open_ceilings();
}

void ArbiterLoop::open_ceilings() {
  for (const auto& vm : vms_()) {
    if (vm->pager()) {
      vm->pager()->set_ceiling(std::nullopt);
    }
  }
}

asio::awaitable<void> ArbiterLoop::run() {
  while (!stopping_) {
    if (settings_.mode != ArbiterMode::off) {
      tick();
    }
    if (settings_.mode != ArbiterMode::on) {
      open_ceilings();  // what an arbiter before this one has left in the keepers
    }
    timer_.expires_after(settings_.interval);
    error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

void ArbiterLoop::tick() {
  const auto now = Clock::now();
  last_tick_ = now;
  host_ = host_report();
  if (!host_problem_.empty()) {
    return;  // blind: everybody keeps what he has
  }
  take_stock(arbiter_, members_, now);
  const TickSummary& summary = arbiter_.tick(host_, now);
  has_ticked_ = true;
  if (summary.level != told_level_) {
    const Severity severity = summary.level > told_level_ ? Severity::warning : Severity::info;
    told_level_ = summary.level;
    events_.publish(severity, "memory-pressure", "", arbiter_.explain_host(),
                    {{"level", to_string(summary.level)}});
  }
  hand_out(now);
}

HostReport ArbiterLoop::host_report() {
  Result<HostReport> report = memory_.read();
  if (!report) {
    if (host_problem_ != report.error().message) {
      host_problem_ = report.error().message;
      events_.publish(Severity::error, "host-unreadable", "",
                      host_problem_ + "; the arbiter moves nothing");
    }
    return host_;
  }
  host_problem_.clear();
  report->limit = settings_.limit;
  return *report;
}

/// Brings `arbiter` up to what is known of the VMs.
void ArbiterLoop::take_stock(Arbiter& arbiter, Members& members, Clock::time_point now) {
  std::map<std::string, std::shared_ptr<Vm>> present;
  for (auto& vm : vms_()) {
    present.emplace(vm->spec().name, std::move(vm));
  }
  std::erase_if(members, [&](const auto& item) {
    const auto found = present.find(item.first);
    const bool is_gone = found == present.end() || item.second.vm.lock() != found->second;
    if (is_gone) {
      arbiter.remove(item.second.id);
    }
    return is_gone;
  });
  for (const auto& [name, vm] : present) {
    auto found = members.find(name);
    if (found == members.end()) {
      Member member;
      member.vm = vm;
      member.settings = settings_of(*vm, member, now);
      member.id = arbiter.add(member.settings);
      found = members.emplace(name, std::move(member)).first;
    } else {
      const VmSettings settings = settings_of(*vm, found->second, now);
      if (settings != found->second.settings) {
        found->second.settings = settings;
        arbiter.change(found->second.id, settings);
      }
    }
    arbiter.report(found->second.id, report_of(*vm, found->second));
  }
}

VmSettings ArbiterLoop::settings_of(const Vm& vm, Member& member, Clock::time_point now) {
  if (member.cgroup_at == Clock::time_point{} || now - member.cgroup_at >= kCgroupInterval) {
    const auto passed = member.cgroup_at == Clock::time_point{}
                            ? Clock::duration{}
                            : elapsed(member.cgroup_at, now, kLongestCgroupStep);
    member.cgroup = memory_.cgroup_of(vm.spec().pid);
    member.cgroup_at = now;
    if (member.cgroup) {
      member.cgroup_ceiling.update(*member.cgroup, vm.footprint(), passed);
    }
  }
  const MemorySettings& memory = vm.policy().settings();
  VmSettings settings;
  settings.ram = vm.ram_size();
  settings.minimum = memory.minimum;
  settings.ceiling = vm.policy().ceiling();
  if (member.cgroup) {
    if (const auto bound = member.cgroup_ceiling.ceiling()) {
      // In steps: what else the VMM uses in its cgroup moves all the time.
      const Bytes step(std::max<std::uint64_t>(vm.ram_size().count() / 64, kPageSize));
      const Bytes rounded(bound->count() / step.count() * step.count());
      settings.ceiling = std::clamp(rounded, settings.minimum, settings.ceiling);
    }
  }
  settings.band = static_cast<unsigned>(vm.spec().band);
  settings.weight = memory.weight;
  settings.can_page = vm.policy().can_page();
  // All of it was checked when it was set.
  return make_vm_settings(settings).value();
}

VmReport ArbiterLoop::report_of(const Vm& vm, Member& member) {
  const Vm::Numbers numbers = vm.numbers();
  VmReport report;
  report.footprint = numbers.footprint;
  report.guest_known = numbers.available && numbers.age < kFresh;
  report.available = numbers.available.value_or(Bytes(0));
  if (member.seen) {
    // A keeper counts every first touch of a frame without memory; it is deflation as far as there
    // was a balloon to take it from.
    report.deflated =
        std::min(numbers.deflated - member.deflated, std::max(member.resident, numbers.resident));
  }
  if (const auto& pager = vm.pager()) {
    report.paged = pager->withheld();
    const std::optional<Bytes> asked_back = pager->asked_back();
    if (asked_back && member.asked_back) {
      report.asked_back = *asked_back - *member.asked_back;  // none where a keeper begins anew
    }
    member.asked_back = asked_back;
  }
  member.seen = true;
  member.deflated = numbers.deflated;
  member.resident = numbers.resident;
  return report;
}

/// Gives each VM what the last tick decided, or says so.
void ArbiterLoop::hand_out(Clock::time_point now) {
  for (auto& [name, member] : members_) {
    const std::shared_ptr<Vm> vm = member.vm.lock();
    const VmDecision decision = arbiter_.decision(member.id);
    if (settings_.mode == ArbiterMode::on) {
      relieve(*vm, member, decision, now);
      const Bytes before = vm->policy().wanted();
      vm->policy().set_share(decision.target,
                             decision.by_force > Bytes(0) && member.relief.may_force());
      if (vm->policy().wanted() != before) {
        vm->steer();
      }
    }
  }
  if (settings_.mode == ArbiterMode::on) {
    keep_limit();
  }
  if (!arbiter_.changed().empty() && settings_.mode == ArbiterMode::on) {
    on_change_();
  }
  for (const VmId id : arbiter_.changed()) {
    const auto found = std::find_if(members_.begin(), members_.end(),
                                    [id](const auto& item) { return item.second.id == id; });
    const VmDecision decision = arbiter_.decision(id);
    const std::string text = arbiter_.explain(id);
    events_.publish_from_guest(
        Severity::info, settings_.mode == ArbiterMode::on ? "share-moved" : "share-would-move",
        found->first, text, EventLog::Clock::now(), {{"share_bytes", decision.target.count()}});
  }
}

/// Divides the configured limit into ceilings, which hold while nobody looks. What stores take in
/// memory is the VMs' as well.
void ArbiterLoop::keep_limit() {
  std::vector<CeilingState> states;
  std::vector<VmPager*> pagers;
  std::vector<bool> may_stay;  // a ceiling that the keeper has
  Bytes stores;
  for (const auto& [name, member] : members_) {
    const std::shared_ptr<Vm> vm = member.vm.lock();
    VmPager* const pager = vm->pager().get();
    CeilingState state;
    // Kept for a VM is what it needs of its share: the rest is room that others may use first.
    const VmDecision decision = arbiter_.decision(member.id);
    state.vm = {vm->ram_size(), std::min(decision.target, decision.need), vm->footprint()};
    state.can_hold = pager != nullptr && vm->policy().can_page() && pager->can_hold();
    if (pager != nullptr) {
      state.in_force = pager->ceiling_in_force();
      stores += pager->store_memory();
    }
    states.push_back(state);
    pagers.push_back(pager);
    // A pager that has stopped keeps its ceiling, which opens by itself until the store takes
    // pages.
    may_stay.push_back(settings_.limit && !state.can_hold && vm->policy().allows_paging());
  }
  std::vector<std::optional<Bytes>> next(states.size());
  if (settings_.limit) {
    const Bytes limit = *settings_.limit;
    next = next_ceilings(states, limit - Bytes(limit.count() / kLimitMarginPart) - stores);
  }
  for (std::size_t i = 0; i < pagers.size(); ++i) {
    if (pagers[i] != nullptr && !may_stay[i]) {
      pagers[i]->set_ceiling(next[i]);
    }
  }
}

/// Page cache before paging: asks a VM that is pressed for it.
void ArbiterLoop::relieve(Vm& vm, Member& member, const VmDecision& decision,
                          Clock::time_point now) {
  const Bytes footprint = vm.footprint();
  const Bytes tolerance = std::max(TargetPolicy::kLeastTolerance,
                                   Bytes(vm.ram_size().count() / TargetPolicy::kTolerancePart));
  const TickSummary& summary = arbiter_.summary();
  const bool someone_lacks = std::any_of(summary.lacking.begin(), summary.lacking.end(),
                                         [](Bytes lack) { return lack > Bytes(0); });
  const bool is_pressed = footprint > decision.target + tolerance &&
                          (summary.level >= PressureLevel::soft || someone_lacks ||
                           summary.footprints > summary.budget);
  switch (member.relief.step(is_pressed, now)) {
    case Relief::Step::none:
      break;
    case Relief::Step::advance_epoch:
      vm.advance_epoch();
      events_.publish_from_guest(Severity::info, "epoch-advanced", vm.spec().name,
                                 "asked for its cold page cache before anything is paged out");
      break;
    case Relief::Step::purge: {
      const Bytes amount = footprint - decision.target;
      if (vm.purge(amount)) {
        events_.publish_from_guest(
            Severity::info, "purge", vm.spec().name,
            fmt::format("asked for {} of page cache before anything is paged out",
                        to_string(amount)));
      }
      break;
    }
  }
}

// -------------------------------------------------------------------------------------- reporting

json::object ArbiterLoop::summary_of(const TickSummary& summary, const std::string& host) const {
  return {{"mode", to_string(settings_.mode)},
          {"host", host},
          {"level", to_string(summary.level)},
          {"available_bytes", host_.available.count()},
          {"psi_some", host_.psi_some},
          {"psi_full", host_.psi_full},
          {"limit_bytes",
           settings_.limit ? json::value(settings_.limit->count()) : json::value(nullptr)},
          {"idle_tax", settings_.arbiter.idle_tax},
          {"capacity_bytes", summary.capacity.count()},
          {"budget_bytes", summary.budget.count()},
          {"footprints_bytes", summary.footprints.count()},
          {"shares_bytes", summary.targets.count()},
          {"needs_bytes", summary.needs.count()},
          {"shortage_bytes", summary.shortage.count()}};
}

json::object ArbiterLoop::decision_of(const Arbiter& arbiter, VmId id, const std::string& name) {
  const VmDecision decision = arbiter.decision(id);
  return {{"name", name},
          {"share_bytes", decision.target.count()},
          {"goal_bytes", decision.goal.count()},
          {"need_bytes", decision.need.count()},
          {"by_force_bytes", decision.by_force.count()},
          {"reason", arbiter.explain(id)}};
}

json::object ArbiterLoop::describe(bool dry_run) {
  const Arbiter* arbiter = &arbiter_;
  const Members* members = &members_;
  // A copy is a snapshot to try things on; where nothing ran yet it begins with what is there.
  Arbiter trial = arbiter_;
  Members trial_members = members_;
  if (dry_run) {
    const auto now = Clock::now();
    host_ = host_report();
    take_stock(trial, trial_members, now);
    trial.tick(host_, now);
    arbiter = &trial;
    members = &trial_members;
  }
  json::object object = summary_of(
      arbiter->summary(), dry_run || has_ticked_ ? arbiter->explain_host() : "the arbiter is off");
  object["dry_run"] = dry_run;
  json::array vms;
  for (const auto& [name, member] : *members) {
    json::object vm = decision_of(*arbiter, member.id, name);
    const auto changed = arbiter->changed();
    vm["changed"] = std::find(changed.begin(), changed.end(), member.id) != changed.end();
    if (const auto managed = member.vm.lock()) {
      vm["band"] = managed->spec().band;
      vm["footprint_bytes"] = managed->footprint().count();
      vm["wanted_footprint_bytes"] = managed->policy().wanted().count();
    }
    if (member.cgroup) {
      vm["cgroup_limit_bytes"] =
          member.cgroup->limit ? json::value(member.cgroup->limit->count()) : json::value(nullptr);
      vm["cgroup_current_bytes"] = member.cgroup->current.count();
      vm["cgroup_psi_some"] = member.cgroup->psi_some;
      vm["cgroup_psi_full"] = member.cgroup->psi_full;
      const auto ceiling = member.cgroup_ceiling.ceiling();
      vm["cgroup_ceiling_bytes"] = ceiling ? json::value(ceiling->count()) : json::value(nullptr);
    }
    vms.push_back(std::move(vm));
  }
  object["vms"] = std::move(vms);
  return object;
}

json::value ArbiterLoop::describe_vm(const std::string& name) const {
  const auto found = members_.find(name);
  if (found == members_.end() || !has_ticked_) {
    return nullptr;
  }
  return decision_of(arbiter_, found->second.id, name);
}

}  // namespace fileballoon::host
