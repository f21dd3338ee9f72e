// UffdRamOwner: the owner of a VM's RAM in `--refault uffd` mode. All discards go to the VM's fault
// keeper (uffd/faultd), which lives on when this daemon ends and is found again by the next one.
#pragma once

#include "host/ram_owner.h"
#include "uffd/faultd/client.h"

namespace fileballoon::host {

class UffdRamOwner final : public RamOwner {
 public:
  /// Finds or starts the keeper of the VM of `ram`. The error says why it cannot be attached.
  [[nodiscard]] static Result<std::unique_ptr<UffdRamOwner>> attach(GuestRam ram);

  ~UffdRamOwner() override;

  [[nodiscard]] DiscardOutcome discard(const BackingRange& range) override;
  [[nodiscard]] Bytes footprint() const override { return ram_->footprint(); }
  [[nodiscard]] Bytes size() const override { return ram_->size(); }
  [[nodiscard]] std::string pager_socket() const override { return socket_; }
  void give_back() override { give_back_ = true; }

 private:
  UffdRamOwner() = default;

  std::string socket_;  // of the keeper
  std::unique_ptr<GuestRam> ram_;
  std::unique_ptr<faultd::FaultdClient> client_;  // refers to *ram_
  std::atomic<bool> give_back_{false};
};

}  // namespace fileballoon::host
