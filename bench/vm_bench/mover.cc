#include "bench/vm_bench/mover.h"

#include <thread>

namespace fileballoon::bench {
namespace {

/// A balloon that cannot reach its size in this time turns round all the same.
constexpr auto kRiseLimit = std::chrono::seconds(20);
/// For the way down; no mechanism says when it is there.
constexpr auto kFall = std::chrono::milliseconds(300);
constexpr auto kRest = std::chrono::milliseconds(700);

}  // namespace

// inflated() of this project counts all that was ever discarded; of virtio-balloon, what is in.
Bytes Mover::risen() { return mode_.inflated() - begun_at_; }

void Mover::up() {
  begun_at_ = mode_.yields_by_reclaim() ? mode_.inflated() : Bytes(0);
  mode_.request(size_);
  rising_ = true;
  turn_at_ = Clock::now() + kRiseLimit;
}

void Mover::begin() {
  if (mode_.takes_target()) up();
}

void Mover::move() {
  if (!mode_.takes_target()) return;
  if (rising_) {
    const Bytes risen_now = risen();
    if (risen_now < size_ && Clock::now() < turn_at_) return;
    rises_ += risen_now >= size_ ? 1 : 0;
    moved_ += risen_now;
    mode_.request(Bytes(0));
    rising_ = false;
    turn_at_ = Clock::now() + kFall;
  } else if (Clock::now() >= turn_at_) {
    up();
  }
}

void Mover::end() {
  if (!mode_.takes_target()) return;
  if (rising_) moved_ += risen();
  rising_ = false;
  mode_.request(Bytes(0));
  std::this_thread::sleep_for(kRest);
}

}  // namespace fileballoon::bench
