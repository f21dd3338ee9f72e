// CpuSpread: keeps threads that look for something without pause on CPUs of their own. The
// scheduler does not see to that where they give way to each other all the time: to it a CPU whose
// threads sleep for microseconds only is a busy one, to which nothing is to be moved (newidle
// balancing leaves off below sysctl_sched_migration_cost, 500 us).
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fileballoon {

class CpuSpread {
 public:
  using Clock = std::chrono::steady_clock;

  /// Between two moves of one thread: a move takes the kernel some 30 us, and who is moved back at
  /// once was moved for nothing.
  static constexpr std::chrono::milliseconds kRest{2};

  explicit CpuSpread(std::size_t members) : members_(members) {}

  /// Member `number`, the calling thread, runs and goes on doing so. Where one before it is on the
  /// same CPU, this one moves to a CPU that none is on, if it may use one; its affinity stays what
  /// it was.
  void look(std::size_t number, Clock::time_point now);
  /// It no longer looks.
  void rest(std::size_t number) { members_[number].cpu.store(-1, std::memory_order_relaxed); }
  /// Times a thread was moved.
  [[nodiscard]] std::uint64_t moves() const { return moves_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Member {
    std::atomic<int> cpu{-1};
    Clock::time_point moved{};  // or tried to
  };

  /// Whether one of the first members is.
  [[nodiscard]] bool is_on(int cpu, std::size_t first_members) const;

  std::vector<Member> members_;
  std::atomic<std::uint64_t> moves_{0};
};

}  // namespace fileballoon
