// Mover: keeps a balloon moving. It asks for a size, waits until the balloon has it, asks for
// nothing, and begins again, so that the mechanism grows or shrinks all the time. One thread at a
// time.
#pragma once

#include <chrono>

#include "bench/vm_bench/mode.h"

namespace fileballoon::bench {

class Mover {
 public:
  using Clock = std::chrono::steady_clock;

  Mover(Mode& mode, Bytes size) : mode_(mode), size_(size) {}

  void begin();
  /// To be called every few milliseconds in between.
  void move();
  /// Back to nothing, and a pause for the mechanism to get there.
  void end();

  /// Rises that reached the size.
  [[nodiscard]] int rises() const { return rises_; }
  /// What the balloon has taken since the construction, all rises together.
  [[nodiscard]] Bytes moved() const { return moved_; }

 private:
  void up();
  /// What this rise has taken so far.
  [[nodiscard]] Bytes risen();

  Mode& mode_;
  Bytes size_;
  Bytes begun_at_;
  bool rising_ = false;
  int rises_ = 0;
  Bytes moved_;
  Clock::time_point turn_at_{};
};

}  // namespace fileballoon::bench
