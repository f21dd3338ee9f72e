// Uring: an io_uring of our own, made and torn down with the object. For one thread at a time.
#pragma once

#include <liburing.h>

namespace fileballoon {

class Uring {
 public:
  /// Throws std::system_error, naming the sysctl that forbids io_uring where one does.
  explicit Uring(unsigned entries);
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;
  ~Uring() { io_uring_queue_exit(&ring_); }

  [[nodiscard]] io_uring* get() { return &ring_; }
  [[nodiscard]] unsigned entries() const { return entries_; }

 private:
  io_uring ring_{};
  unsigned entries_;
};

}  // namespace fileballoon
