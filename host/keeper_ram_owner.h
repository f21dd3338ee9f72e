// KeeperRamOwner: the owner of a VM's RAM that has a fault keeper (uffd/faultd), which lives on
// when this daemon ends and is found again by the next one. All discards go to the keeper, which
// write-protects before it discards; with `--refault uffd` it answers the guest's refaults, too.
#pragma once

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>

#include "host/ram_owner.h"
#include "uffd/faultd/client.h"

namespace fileballoon::host {

class KeeperRamOwner final : public RamOwner {
 public:
  /// Finds or starts the keeper of the VM of `ram`. The error says why it cannot be attached; `ram`
  /// is as it was then.
  [[nodiscard]] static Result<std::unique_ptr<KeeperRamOwner>> attach(
      RefaultMode mode, std::shared_ptr<GuestRam> ram);

  ~KeeperRamOwner() override;

  [[nodiscard]] DiscardOutcome discard(const BackingRange& range) override;
  /// With `--refault uffd` the keeper books which frames are absent; memory that appears behind its
  /// back would not be.
  [[nodiscard]] int populate(const BackingRange& range) override {
    return can_populate() ? populate_backing(*ram_, range) : ENOTSUP;
  }
  [[nodiscard]] bool can_populate() const override { return mode_ == RefaultMode::kernel; }
  [[nodiscard]] Bytes footprint() const override { return ram_->footprint(); }
  [[nodiscard]] Bytes size() const override { return ram_->size(); }
  [[nodiscard]] std::string keeper_socket() const override {
    return mode_ == RefaultMode::uffd ? socket_ : std::string();
  }
  void give_back() override { give_back_ = true; }

 private:
  KeeperRamOwner(RefaultMode mode, std::shared_ptr<GuestRam> ram)
      : mode_(mode), ram_(std::move(ram)) {}

  RefaultMode mode_;
  std::string socket_;  // of the keeper
  std::shared_ptr<GuestRam> ram_;
  std::unique_ptr<faultd::FaultdClient> client_;  // refers to *ram_
  std::atomic<bool> give_back_{false};
};

}  // namespace fileballoon::host
