#include "guest-fs/shared_block.h"

#include <sys/mman.h>

#include <bit>
#include <cerrno>
#include <new>
#include <system_error>

namespace fileballoon::guest {
namespace {

std::uint64_t pack(Limits limits) {
  return (limits.target.whole_pages() << 32) | (limits.floor.whole_pages() & 0xffffffffU);
}

}  // namespace

SharedBlock* SharedBlock::create() {
  void* at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "shared page of the agent");
  }
  static_assert(sizeof(SharedBlock) <= kPageSize);
  return new (at) SharedBlock();
}

Limits SharedBlock::limits() const {
  const std::uint64_t packed = limits_.load(std::memory_order_acquire);
  return {Bytes::pages(packed >> 32), Bytes::pages(packed & 0xffffffffU)};
}

void SharedBlock::set_limits(Limits limits) {
  limits_.store(pack(limits), std::memory_order_release);
}

bool SharedBlock::change_limits(Limits expected, Limits desired) {
  std::uint64_t packed = pack(expected);
  return limits_.compare_exchange_strong(packed, pack(desired), std::memory_order_acq_rel);
}

void SharedBlock::publish(const AgentStats& stats) {
  const auto values = std::bit_cast<std::array<std::uint64_t, kWords>>(stats);
  const std::uint64_t version = version_.load(std::memory_order_relaxed);
  version_.store(version + 1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < kWords; ++i) {
    words_[i].store(values[i], std::memory_order_release);  // after the odd version, each
  }
  version_.store(version + 2, std::memory_order_release);
}

AgentStats SharedBlock::stats() const {
  std::array<std::uint64_t, kWords> values{};
  // A writer that died in the middle leaves an odd version for ever: take what is there then.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const std::uint64_t before = version_.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < kWords; ++i) {
      values[i] = words_[i].load(std::memory_order_acquire);  // before the second look, each
    }
    if ((before & 1U) == 0 && version_.load(std::memory_order_relaxed) == before) {
      break;
    }
  }
  return std::bit_cast<AgentStats>(values);
}

}  // namespace fileballoon::guest
