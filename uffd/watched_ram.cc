#include "uffd/watched_ram.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace fileballoon {
namespace {

UffdMode mode_of(const WatchedRam::Options& options) {
  auto bits = std::uint64_t{0};
  if (options.write_protect) {
    bits |= static_cast<std::uint64_t>(UffdMode::write_protect);
  }
  if (options.mode == RefaultMode::engine) {
    bits |= static_cast<std::uint64_t>(UffdMode::missing);
    if (options.minor) {
      bits |= static_cast<std::uint64_t>(UffdMode::minor);
    }
  }
  return static_cast<UffdMode>(bits);
}

}  // namespace

std::vector<RamObject> WatchedRam::objects_of(const GuestRam& ram) {
  std::vector<RamObject> objects;
  for (const Backing& backing : ram.backings()) {
    objects.push_back({backing.fd.get(), backing.size, backing.mappings, false, false});
  }
  return objects;
}

WatchedRam::WatchedRam(std::vector<RamObject> objects, std::vector<Userfaultfd> shards,
                       Options options)
    : objects_(std::move(objects)), shards_(std::move(shards)), options_(options) {
  lost_ = std::make_unique<std::atomic<bool>[]>(objects_.size());
  std::vector<int> descriptors;
  for (const RamObject& object : objects_) {
    descriptors.push_back(object.fd);
  }
  fill_limit_ = std::make_unique<FillLimit>(std::move(descriptors));
  for (const RamObject& object : objects_) {
    frames_.push_back(std::make_unique<FrameMap>(object.size.whole_pages()));
    if (options_.initial != FrameState::backed) {
      frames_.back()->set(0, object.size.whole_pages(), options_.initial);
    }
  }
}

Result<std::unique_ptr<WatchedRam>> WatchedRam::create(std::vector<RamObject> objects,
                                                       std::vector<Userfaultfd> shards,
                                                       Options options) {
  if (shards.empty() || objects.empty()) {
    return Error{"nothing to watch: no memory object or no userfaultfd given"};
  }
  std::unique_ptr<WatchedRam> ram(new WatchedRam(std::move(objects), std::move(shards), options));
  ram->build_regions();
  if (ram->regions_.empty()) {
    return Error{"nothing to watch: the memory objects are not mapped"};
  }
  if (!options.registered) {
    if (const auto watched = ram->watch_all(); watched.has_error()) {
      return watched.error();
    }
  }
  if (options.initial == FrameState::backed) {
    ram->learn_holes();
  }
  return ram;
}

WatchedRam::~WatchedRam() {
  if (options_.registered) {
    return;  // its maker's business: pages that are still to come must not turn into zeros
  }
  for (const Region& region : regions_) {
    shard_of(region).unwatch(region.where);
  }
}

void WatchedRam::build_regions() {
  Bytes total;
  for (const RamObject& object : objects_) {
    for (const VmmMapping& mapping : object.mappings) {
      total += mapping.range.size;
    }
  }
  // Each shard watches one span of about the same size; cuts fall on the pieces that share a lock,
  // so that a fault never spans two shards.
  const std::uint64_t piece = RangeLocks::kPiece.count();
  const std::uint64_t share =
      std::max(piece, (total.count() / shards_.size() + piece - 1) / piece * piece);
  std::uint64_t seen = 0;
  for (std::uint32_t i = 0; i < objects_.size(); ++i) {
    for (const VmmMapping& mapping : objects_[i].mappings) {
      const std::uint64_t offset = mapping.range.start.bytes();
      // What is mapped past the end of a file cannot be touched.
      const std::uint64_t limit = objects_[i].size.count();
      const std::uint64_t length =
          offset < limit ? std::min(mapping.range.size.count(), limit - offset) : 0;
      for (std::uint64_t at = 0; at < length;) {
        const std::uint64_t shard = std::min<std::uint64_t>(seen / share, shards_.size() - 1);
        std::uint64_t size = length - at;
        if (shard + 1 < shards_.size()) {
          size = std::min(size, (shard + 1) * share - seen);
          const std::uint64_t unaligned = (offset + at + size) % piece;
          if (at + size < length && unaligned != 0 && size > unaligned) {
            size -= unaligned;
          }
        }
        regions_.push_back({{mapping.address + at, Bytes(size)},
                            i,
                            HostOffset(offset + at),
                            static_cast<std::uint32_t>(shard)});
        at += size;
        seen += size;
        if (shard + 1 < shards_.size() && seen < (shard + 1) * share && at < length) {
          seen = (shard + 1) * share;  // the cut was moved down to a piece's edge
        }
      }
    }
  }
  std::sort(regions_.begin(), regions_.end(),
            [](const Region& a, const Region& b) { return a.where.start < b.where.start; });
}

Result<void> WatchedRam::watch_all() {
  for (const Region& region : regions_) {
    if (auto watched = shard_of(region).watch(region.where, mode_of(options_));
        watched.has_error()) {
      return watched;  // the destructor unregisters the ones before
    }
  }
  return {};
}

void WatchedRam::learn_holes() {
  for (std::uint32_t i = 0; i < objects_.size(); ++i) {
    const int fd = objects_[i].fd;
    if (fd < 0) {
      if (objects_[i].local && options_.mode == RefaultMode::engine) {
        learn_absent(i);
      }
      continue;
    }
    const auto size = static_cast<off_t>(objects_[i].size.count());
    const auto page = static_cast<off_t>(kPageSize);
    for (off_t at = 0; at < size;) {
      const off_t hole = ::lseek(fd, at, SEEK_HOLE);
      if (hole < 0 || hole >= size) {
        break;
      }
      off_t data = ::lseek(fd, hole, SEEK_DATA);
      if (data < 0 || data > size) {
        data = size;
      }
      frames_[i]->set(static_cast<std::uint64_t>(hole / page),
                      static_cast<std::uint64_t>((data - hole) / page), FrameState::absent);
      at = data;
    }
  }
}

// Private memory of this process that was never touched: its first touches come in ranges, too.
void WatchedRam::learn_absent(std::uint32_t object) {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  constexpr std::uint64_t kPresentOrSwapped = 3ULL << 62;  // proc(5)
  const std::uint64_t pages = objects_[object].size.whole_pages();
  const std::uint64_t base = objects_[object].mappings[0].address / kPageSize;
  std::array<std::uint64_t, 512> entries;
  for (std::uint64_t first = 0; first < pages; first += entries.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(entries.size(), pages - first);
    const auto wanted = static_cast<ssize_t>(count * sizeof entries[0]);
    if (::pread(pagemap.get(), entries.data(), static_cast<std::size_t>(wanted),
                static_cast<off_t>((base + first) * sizeof entries[0])) != wanted) {
      return;  // unknown stays `backed`: costs time, nothing else
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      if ((entries[i] & kPresentOrSwapped) == 0) {
        frames_[object]->set(first + i, 1, FrameState::absent);
      }
    }
  }
}

const WatchedRam::Region* WatchedRam::find(std::uint64_t address) const {
  auto at = std::upper_bound(
      regions_.begin(), regions_.end(), address,
      [](std::uint64_t value, const Region& region) { return value < region.where.start; });
  if (at == regions_.begin()) {
    return nullptr;
  }
  --at;
  return at->where.contains(address) ? &*at : nullptr;
}

}  // namespace fileballoon
