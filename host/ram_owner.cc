#include "host/ram_owner.h"

#include <sys/file.h>
#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "host/keeper_ram_owner.h"

namespace fileballoon::host {
namespace {

constexpr std::string_view kUnprotected =
    "discards are not write-protected, so a guest that lies about its frames can lose its own "
    "data: ";

/// Verify, punch, check the hole, and no userfaultfd: nothing keeps the guest from writing between
/// the look and the punch. The agent does not; a lying one loses its guest's own data.
class PlainRamOwner final : public RamOwner {
 public:
  explicit PlainRamOwner(std::shared_ptr<GuestRam> ram) : ram_(std::move(ram)), discarder_(*ram_) {}

  DiscardOutcome discard(const BackingRange& range) override {
    return discarder_.discard(range.backing, range.range);
  }
  int populate(const BackingRange& range) override { return populate_backing(*ram_, range); }
  bool can_populate() const override { return true; }
  Bytes footprint() const override { return ram_->footprint(); }
  Bytes size() const override { return ram_->size(); }

 private:
  std::shared_ptr<GuestRam> ram_;
  PunchDiscarder discarder_;  // refers to *ram_
};

}  // namespace

int populate_backing(const GuestRam& ram, const BackingRange& range) {
  // By a mapping of our own and not by fallocate(2), whose pages stay "not up to date" and count as
  // holes until somebody touches them (shmem_fallocate(), Linux 6.12). The pages are charged to the
  // daemon's memory cgroup. Linux 5.14.
  const std::size_t length = range.range.size.count();
  void* const at =
      ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED,
             ram.backings()[range.backing].fd.get(), static_cast<off_t>(range.range.start.bytes()));
  if (at == MAP_FAILED) {
    return errno;
  }
  const int error = ::madvise(at, length, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
  ::munmap(at, length);
  return error;
}

bool is_about_protection(std::string_view warning) { return warning.starts_with(kUnprotected); }

std::string_view to_string(RefaultMode mode) {
  return mode == RefaultMode::kernel ? "kernel" : "uffd";
}

Result<RefaultMode> parse_refault_mode(std::string_view text) {
  if (text == "kernel") {
    return RefaultMode::kernel;
  }
  if (text == "uffd") {
    return RefaultMode::uffd;
  }
  return Error{"unknown refault mode '" + std::string(text) + "'; write kernel or uffd"};
}

Result<std::unique_ptr<RamOwner>> make_ram_owner(RefaultMode mode, GuestRam ram,
                                                 const RamLayout& /*layout*/,
                                                 std::vector<std::string>& warnings) {
  // The lock sits on our own open file description of the inode, so it ends with this process and
  // no other daemon, whatever its control socket, can discard the same RAM meanwhile.
  for (const Backing& backing : ram.backings()) {
    if (::flock(backing.fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      return Error{ram.process().label() +
                   " is attached to another fileballoond already (its RAM is locked); detach it "
                   "there first"};
    }
  }
  const auto shared = std::make_shared<GuestRam>(std::move(ram));
  auto owner = KeeperRamOwner::attach(mode, shared);
  if (owner.has_value()) {
    return std::unique_ptr<RamOwner>(std::move(*owner));
  }
  const auto socket = faultd::default_socket(*shared);
  if (mode == RefaultMode::uffd || (socket.has_value() && faultd::is_kept(*socket))) {
    return owner.error();  // two who discard the same RAM could lose data
  }
  warnings.push_back(std::string(kUnprotected) + owner.error().message);
  return std::unique_ptr<RamOwner>(std::make_unique<PlainRamOwner>(shared));
}

}  // namespace fileballoon::host
