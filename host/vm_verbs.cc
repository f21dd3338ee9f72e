#include "host/vm_verbs.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "host/actor_registry.h"
#include "host/rpc.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

[[noreturn]] void refuse(const std::string& message) {
  throw RpcFailure(RpcCode::refused, message);
}

template <class T>
T good_or_refuse(Result<T> result) {
  if (!result) {
    refuse(result.error().message);
  }
  if constexpr (!std::is_void_v<T>) {
    return std::move(*result);
  }
}

void tell_limits(const Vm& vm, const VerbContext& context) {
  context.save();
  context.events.publish(
      Severity::info, "limits-set", vm.spec().name,
      fmt::format("footprint {}, balloon target {}, floor {}", to_string(vm.policy().wanted()),
                  to_string(vm.limits().target), to_string(vm.floor())),
      {{"wanted_footprint_bytes", vm.policy().wanted().count()},
       {"target_bytes", vm.limits().target.count()},
       {"floor_bytes", vm.floor().count()}});
}

json::value mem_set(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "size"});
  const Bytes footprint = params.size("size", vm.ram_size());
  if (footprint > vm.ram_size()) {
    refuse(fmt::format("{} is above the VM's RAM of {}; a footprint cannot be larger",
                       to_string(footprint), to_string(vm.ram_size())));
  }
  good_or_refuse(
      make_limits(target_for_footprint(vm.ram_size(), footprint), vm.floor(), vm.ram_size()));
  const Bytes before = vm.policy().ceiling();
  good_or_refuse(vm.policy().set_ceiling(footprint));
  if (vm.policy().ceiling() != before) {
    vm.steer();
    tell_limits(vm, context);
  }
  return vm.summary();
}

json::value mem_floor(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "size"});
  const Limits limits =
      good_or_refuse(make_limits(target_for_footprint(vm.ram_size(), vm.policy().ceiling()),
                                 params.size("size", vm.ram_size()), vm.ram_size()));
  if (limits.floor != vm.floor()) {
    vm.set_floor(limits.floor);
    tell_limits(vm, context);
  }
  return vm.summary();
}

json::object memory_of(const Vm& vm) {
  json::object object = vm.policy().describe();
  object["name"] = vm.spec().name;
  object["band"] = vm.spec().band;
  object["footprint_bytes"] = vm.footprint().count();
  object["store"] = to_string(vm.policy().settings().store);
  return object;
}

/// Whether `policy` needs paging to do anything for a while or at all.
bool starts_with_paging(MemoryPolicy policy) {
  return policy == MemoryPolicy::page_only || policy == MemoryPolicy::page_then_balloon;
}

json::value mem_policy(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "policy", "timeout", "actor"});
  std::optional<MemoryPolicy> policy;
  std::optional<std::chrono::milliseconds> timeout;
  std::optional<ActorName> actor;
  if (const auto text = params.optional_text("policy")) {
    policy = good_or_refuse(parse_policy(*text));
  }
  if (const auto text = params.optional_text("timeout")) {
    timeout = good_or_refuse(parse_timeout(*text));
  }
  if (const auto text = params.optional_text("actor")) {
    actor = good_or_refuse(parse_actor(*text, actor_names()));
    if (actor->kind == ActorName::Kind::external) {
      good_or_refuse(ExternalActor::check(actor->name));
    }
  }
  if (!policy && !timeout && !actor) {
    return memory_of(vm);
  }
  const MemorySettings& now = vm.policy().settings();
  const MemoryPolicy effective =
      good_or_refuse(effective_policy(policy.value_or(now.policy), actor.value_or(now.actor)));
  if ((policy || actor) && starts_with_paging(effective) && !vm.has_pager()) {
    refuse(
        fmt::format("'{}' cannot be paged out: attach it with --refault uffd and a store "
                    "(--store-memory, --store-path)",
                    vm.spec().name));
  }
  good_or_refuse(vm.policy().set_policy(policy, timeout, actor));
  vm.steer();
  context.save();
  context.events.publish(
      Severity::info, "policy-set", vm.spec().name,
      fmt::format("{}, timeout {:.3g} s, actor {}", to_string(now.policy),
                  std::chrono::duration<double>(now.timeout).count(), to_string(now.actor)),
      {{"policy", to_string(now.policy)}, {"actor", to_string(now.actor)}});
  return memory_of(vm);
}

json::value mem_band(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "band", "minimum", "weight"});
  const auto band = params.optional_integer("band");
  const auto weight = params.optional_integer("weight");
  const bool has_minimum = raw.contains("minimum");
  if (!band && !weight && !has_minimum) {
    return memory_of(vm);
  }
  if (band) {
    good_or_refuse(check_band(*band));
  }
  if (weight) {
    good_or_refuse(check_weight(*weight));
  }
  if (has_minimum) {  // last, since it may be refused
    good_or_refuse(vm.policy().set_minimum(params.size("minimum", vm.ram_size())));
  }
  if (band) {
    vm.set_band(static_cast<int>(*band));
  }
  if (weight) {
    vm.policy().set_weight(static_cast<std::uint32_t>(*weight));
  }
  vm.steer();
  context.save();
  const MemorySettings& now = vm.policy().settings();
  context.events.publish(
      Severity::info, "band-set", vm.spec().name,
      fmt::format("band {}, minimum {}, weight {}", vm.spec().band, to_string(now.minimum),
                  now.weight),
      {{"band", vm.spec().band}, {"minimum_bytes", now.minimum.count()}, {"weight", now.weight}});
  return memory_of(vm);
}

json::value epoch(Vm& vm, const json::object& raw, const VerbContext& /*context*/) {
  const RpcParams params(raw);
  params.allow_only({"name", "advance"});
  if (params.flag("advance")) {
    vm.advance_epoch();
  }
  return json::object{{"name", vm.spec().name}, {"epoch", vm.epoch()}, {"state", vm.state()}};
}

json::value purge(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "amount"});
  // All of it: a guest cannot have more page cache than RAM.
  const Bytes amount =
      raw.contains("amount") ? params.size("amount", vm.ram_size()) : vm.ram_size();
  if (!vm.purge(amount)) {
    refuse(fmt::format("{} cannot be asked now ({}): its agent (balloonfs) must be connected",
                       vm.spec().name, vm.state()));
  }
  context.events.publish(Severity::info, "purge", vm.spec().name,
                         fmt::format("asked for {} of page cache", to_string(amount)),
                         {{"amount_bytes", amount.count()}});
  return json::object{{"name", vm.spec().name}, {"amount_bytes", amount.count()}};
}

json::value cache(Vm& vm, const json::object& raw, const VerbContext& context) {
  const RpcParams params(raw);
  params.allow_only({"name", "mode"});
  const CacheMode mode = good_or_refuse(parse_cache_mode(params.text("mode")));
  vm.set_cache(mode);
  context.save();
  context.events.publish(Severity::info, "cache-mode-set", vm.spec().name,
                         fmt::format("cold page cache: {}", to_string(mode)));
  return json::object{{"name", vm.spec().name}, {"mode", to_string(mode)}, {"state", vm.state()}};
}

constexpr std::array kVerbs = {
    std::pair<std::string_view, VmVerb>{"mem-set", mem_set},
    std::pair<std::string_view, VmVerb>{"mem-floor", mem_floor},
    std::pair<std::string_view, VmVerb>{"mem-policy", mem_policy},
    std::pair<std::string_view, VmVerb>{"mem-band", mem_band},
    std::pair<std::string_view, VmVerb>{"epoch", epoch},
    std::pair<std::string_view, VmVerb>{"purge", purge},
    std::pair<std::string_view, VmVerb>{"cache", cache},
};

}  // namespace

VmVerb find_vm_verb(std::string_view method) {
  for (const auto& [name, verb] : kVerbs) {
    if (name == method) {
      return verb;
    }
  }
  return nullptr;
}

}  // namespace fileballoon::host
