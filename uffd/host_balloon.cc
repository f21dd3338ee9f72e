#include "uffd/host_balloon.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <exception>

namespace fileballoon {

Result<std::unique_ptr<HostBalloon>> HostBalloon::create(std::span<const Region> regions,
                                                         const Options& options) {
  std::unique_ptr<HostBalloon> balloon(new HostBalloon());
  std::vector<RamObject> objects;
  for (const Region& region : regions) {
    const auto address = reinterpret_cast<std::uintptr_t>(region.address);
    if (address % kPageSize != 0 || region.size.count() % kPageSize != 0 ||
        region.size.count() == 0) {
      return Error{"guest RAM must be page aligned and not empty"};
    }
    RamObject object;
    object.size = region.size;
    object.mappings = {{address, {HostOffset(0), region.size}}};
    if (region.shared_fd >= 0) {
      UniqueFd fd(::fcntl(region.shared_fd, F_DUPFD_CLOEXEC, 0));
      struct stat st {};
      if (!fd.valid() || ::fstat(fd.get(), &st) != 0) {
        return Error{std::string("the descriptor of shared guest RAM cannot be used: ") +
                     std::strerror(errno)};
      }
      if (static_cast<std::uint64_t>(st.st_size) < region.size.count()) {
        return Error{"the shared memory object is shorter than the guest RAM mapped from it"};
      }
      object.fd = fd.get();
      balloon->fds_.push_back(std::move(fd));
    } else {
      object.local = true;
      object.lazy = options.lazy;
    }
    objects.push_back(std::move(object));
  }
  std::vector<Userfaultfd> shards;
  for (unsigned i = 0; i < options.shards; ++i) {
    auto uffd = Userfaultfd::open(UffdFeature::missing_shmem | UffdFeature::wp_hugetlbfs_shmem |
                                  UffdFeature::pagefault_wp);
    if (uffd.has_error()) {
      return uffd.error();
    }
    shards.push_back(std::move(*uffd));
  }
  WatchedRam::Options watch;
  watch.mode = options.refaults;
  auto ram = WatchedRam::create(std::move(objects), std::move(shards), watch);
  if (ram.has_error()) {
    return ram.error();
  }
  balloon->ram_ = std::move(*ram);
  try {
    balloon->engine_ = std::make_unique<FaultEngine>(*balloon->ram_, FaultEngine::Options{});
    balloon->discarder_ = std::make_unique<GuardedDiscarder>(*balloon->ram_);
  } catch (const std::exception& error) {
    return Error{error.what()};
  }
  return balloon;
}

}  // namespace fileballoon
