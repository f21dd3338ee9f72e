#include "host/keeper_ram_owner.h"

#include <utility>

namespace fileballoon::host {

Result<std::unique_ptr<KeeperRamOwner>> KeeperRamOwner::attach(RefaultMode mode,
                                                               std::shared_ptr<GuestRam> ram) {
  std::unique_ptr<KeeperRamOwner> owner(new KeeperRamOwner(mode, std::move(ram)));
  const auto socket = faultd::default_socket(*owner->ram_);
  if (socket.has_error()) {
    return socket.error();
  }
  faultd::FaultdClient::Options options;
  options.socket = owner->socket_ = *socket;
  options.refaults = mode == RefaultMode::kernel ? fileballoon::RefaultMode::kernel
                                                 : fileballoon::RefaultMode::engine;
  auto client = faultd::FaultdClient::attach(*owner->ram_, std::move(options));
  if (client.has_error()) {
    return client.error();
  }
  owner->client_ = std::move(*client);
  return owner;
}

KeeperRamOwner::~KeeperRamOwner() {
  if (give_back_) {
    // A keeper that cannot be told is killed by the client; either way the kernel takes over.
    (void)client_->detach().has_error();
  }
}

DiscardOutcome KeeperRamOwner::discard(const BackingRange& range) {
  return client_->discard(range.backing, range.range);
}

}  // namespace fileballoon::host
