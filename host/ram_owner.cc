#include "host/ram_owner.h"

#include <sys/file.h>
#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "host/uffd_ram_owner.h"

namespace fileballoon::host {
namespace {

/// `--refault kernel`: verify, punch, check the hole; the kernel answers refaults by itself.
class KernelRamOwner final : public RamOwner {
 public:
  explicit KernelRamOwner(GuestRam ram) : ram_(std::move(ram)), discarder_(ram_) {}

  DiscardOutcome discard(const BackingRange& range) override {
    return discarder_.discard(range.backing, range.range);
  }
  int populate(const BackingRange& range) override {
    // By a mapping of our own and not by fallocate(2), whose pages stay "not up to date" and count
    // as holes until somebody touches them (shmem_fallocate(), Linux 6.12). The pages are charged
    // to the daemon's memory cgroup. Linux 5.14.
    const std::size_t length = range.range.size.count();
    void* const at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED,
                            ram_.backings()[range.backing].fd.get(),
                            static_cast<off_t>(range.range.start.bytes()));
    if (at == MAP_FAILED) {
      return errno;
    }
    const int error = ::madvise(at, length, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
    ::munmap(at, length);
    return error;
  }
  bool can_populate() const override { return true; }
  Bytes footprint() const override { return ram_.footprint(); }
  Bytes size() const override { return ram_.size(); }

 private:
  GuestRam ram_;
  PunchDiscarder discarder_;  // refers to ram_
};

}  // namespace

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
                                                 const RamLayout& /*layout*/) {
  // The lock sits on our own open file description of the inode, so it ends with this process and
  // no other daemon, whatever its control socket, can discard the same RAM meanwhile.
  for (const Backing& backing : ram.backings()) {
    if (::flock(backing.fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      return Error{ram.process().label() +
                   " is attached to another fileballoond already (its RAM is locked); detach it "
                   "there first"};
    }
  }
  if (mode == RefaultMode::uffd) {
    auto owner = UffdRamOwner::attach(std::move(ram));
    if (owner.has_error()) {
      return owner.error();
    }
    return std::unique_ptr<RamOwner>(std::move(*owner));
  }
  return std::unique_ptr<RamOwner>(std::make_unique<KernelRamOwner>(std::move(ram)));
}

}  // namespace fileballoon::host
