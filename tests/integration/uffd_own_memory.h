// OwnMemory: memory of the test's own process, watched by a real userfaultfd: the smallest thing
// that behaves like guest RAM. Used by the userfaultfd tests and benchmarks.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "uffd/fault_engine.h"
#include "uffd/guarded_discard.h"

namespace fileballoon::testing {

enum class MemoryKind { anonymous, memfd };

struct OwnMemoryOptions {
  MemoryKind kind = MemoryKind::memfd;
  Bytes size = Bytes::mib(64);
  unsigned shards = 1;
  WatchedRam::Options watch;
  bool lazy = false;  ///< anonymous only: MADV_FREE
  bool populated = true;
};

class OwnMemory {
 public:
  using Options = OwnMemoryOptions;

  explicit OwnMemory(const Options& options) : size_(options.size) {
    const std::size_t length = size_.count();
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (options.kind == MemoryKind::memfd) {
      fd_ = UniqueFd(::memfd_create("own", MFD_CLOEXEC));
      if (!fd_.valid() || ::ftruncate(fd_.get(), static_cast<off_t>(length)) != 0) {
        throw std::runtime_error("memfd_create failed");
      }
      flags = MAP_SHARED;
    }
    void* at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, flags, fd_.get(), 0);
    if (at == MAP_FAILED) {
      throw std::runtime_error("mmap failed");
    }
    base_ = static_cast<std::byte*>(at);
    // Base pages, as guest RAM that is ballooned page by page has them.
    (void)::madvise(base_, length, MADV_NOHUGEPAGE);
    if (options.populated && ::madvise(base_, length, MADV_POPULATE_WRITE) != 0) {
      throw std::runtime_error("populate failed");
    }
    RamObject object;
    object.fd = fd_.get();
    object.size = size_;
    object.mappings = {{address(), {HostOffset(0), size_}}};
    object.local = options.kind == MemoryKind::anonymous;
    object.lazy = options.lazy;
    std::vector<Userfaultfd> shards;
    for (unsigned i = 0; i < options.shards; ++i) {
      shards.push_back(Userfaultfd::open(UffdFeature::missing_shmem |
                                             UffdFeature::wp_hugetlbfs_shmem |
                                             UffdFeature::pagefault_wp,
                                         UffdFeature::minor_shmem | UffdFeature::wp_unpopulated)
                           .value());
    }
    ram_ = WatchedRam::create({object}, std::move(shards), options.watch).value();
  }
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;
  ~OwnMemory() {
    ram_.reset();
    ::munmap(base_, size_.count());
  }

  [[nodiscard]] std::byte* base() { return base_; }
  [[nodiscard]] std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(base_); }
  [[nodiscard]] std::byte* page(std::uint64_t n) { return base_ + n * kPageSize; }
  [[nodiscard]] std::uint64_t pages() const { return size_.whole_pages(); }
  [[nodiscard]] HostRange all() const { return {HostOffset(0), size_}; }
  [[nodiscard]] HostRange range(std::uint64_t first, std::uint64_t count) const {
    return {HostOffset(first * kPageSize), Bytes::pages(count)};
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] WatchedRam& ram() { return *ram_; }
  void close_ram() { ram_.reset(); }

 private:
  Bytes size_;
  UniqueFd fd_;
  std::byte* base_ = nullptr;
  std::unique_ptr<WatchedRam> ram_;
};

}  // namespace fileballoon::testing
