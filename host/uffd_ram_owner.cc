#include "host/uffd_ram_owner.h"

#include <utility>

namespace fileballoon::host {

Result<std::unique_ptr<UffdRamOwner>> UffdRamOwner::attach(GuestRam ram) {
  std::unique_ptr<UffdRamOwner> owner(new UffdRamOwner());
  owner->ram_ = std::make_unique<GuestRam>(std::move(ram));
  const auto socket = faultd::default_socket(*owner->ram_);
  if (socket.has_error()) {
    return socket.error();
  }
  faultd::FaultdClient::Options options;
  options.socket = owner->socket_ = *socket;
  auto client = faultd::FaultdClient::attach(*owner->ram_, std::move(options));
  if (client.has_error()) {
    return client.error();
  }
  owner->client_ = std::move(*client);
  return owner;
}

UffdRamOwner::~UffdRamOwner() {
  if (give_back_) {
    // A keeper that cannot be told is killed by the client; either way the kernel takes over.
    (void)client_->detach().has_error();
  }
}

DiscardOutcome UffdRamOwner::discard(const BackingRange& range) {
  return client_->discard(range.backing, range.range);
}

}  // namespace fileballoon::host
