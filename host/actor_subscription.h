// ActorSubscription: one connection of the control socket, in its role as an external actor of a
// VM. It checks that the peer is the program that the daemon started, hands it the VM's target, and
// lets the actor know of what it says and of its nonsense. Control thread only.
#pragma once

#include <sys/types.h>

#include <boost/json.hpp>
#include <memory>

#include "host/daemon.h"
#include "host/external_actor.h"

namespace fileballoon::host {

class ActorSubscription {
 public:
  /// `peer`: the process at the other end.
  ActorSubscription(Daemon& daemon, pid_t peer) : daemon_(daemon), peer_(peer) {}
  ActorSubscription(const ActorSubscription&) = delete;
  ActorSubscription& operator=(const ActorSubscription&) = delete;
  ~ActorSubscription() { end(); }

  /// actor-subscribe and actor-report. Throw RpcFailure.
  [[nodiscard]] boost::json::value subscribe(const boost::json::object& params,
                                             ExternalActor::Push push);
  [[nodiscard]] boost::json::value report(const boost::json::object& params);
  /// A message of this connection cannot be understood; nothing happens unless it is an actor's.
  void nonsense(std::string_view what);
  void end();

 private:
  [[nodiscard]] std::shared_ptr<ExternalActor> actor_of(const boost::json::object& params) const;

  Daemon& daemon_;
  pid_t peer_;
  std::weak_ptr<ExternalActor> actor_;
};

}  // namespace fileballoon::host
