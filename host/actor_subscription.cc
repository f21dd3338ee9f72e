#include "host/actor_subscription.h"

#include <fmt/format.h>

namespace fileballoon::host {

std::shared_ptr<ExternalActor> ActorSubscription::actor_of(
    const boost::json::object& params) const {
  const std::shared_ptr<Vm> vm = daemon_.find(RpcParams(params).text("name"));
  std::shared_ptr<ExternalActor> actor = vm->external();
  if (!actor) {
    throw RpcFailure(RpcCode::refused,
                     fmt::format("VM '{}' has no external actor; mem-policy --actor external:PATH "
                                 "appoints one",
                                 vm->spec().name));
  }
  if (!actor->is_program(peer_)) {
    throw RpcFailure(RpcCode::refused,
                     fmt::format("pid {} is not the actor of VM '{}'; the daemon starts {} itself",
                                 peer_, vm->spec().name, actor->path()));
  }
  return actor;
}

boost::json::value ActorSubscription::subscribe(const boost::json::object& params,
                                                ExternalActor::Push push) {
  RpcParams(params).allow_only({"name"});
  const std::shared_ptr<ExternalActor> actor = actor_of(params);
  if (!actor_.expired()) {
    throw RpcFailure(RpcCode::refused, "this connection is subscribed already");
  }
  actor_ = actor;
  return actor->subscribe(std::move(push));
}

boost::json::value ActorSubscription::report(const boost::json::object& params) {
  actor_of(params)->report(params);
  return boost::json::object{};
}

void ActorSubscription::nonsense(std::string_view what) {
  if (const auto actor = actor_.lock()) {
    actor->nonsense(std::string(what));
  }
}

void ActorSubscription::end() {
  if (const auto actor = actor_.lock()) {
    actor->unsubscribe();
  }
  actor_.reset();
}

}  // namespace fileballoon::host
