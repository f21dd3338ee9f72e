// WriteBudget: how much may be written to flash per day, remembered across restarts in a small file
// that is replaced atomically. Time enters as a value, so every rule is tested without waiting; no
// clock jump, back or forth, gives more than one day's budget per day that really passed. The pager
// tells it the time, file stores charge it. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/result.h"

namespace fileballoon {

class WriteBudget {
 public:
  /// Both clocks at one moment. The wall clock says which day it is, the steady one how much time
  /// really passed since this process started to look.
  struct Now {
    std::chrono::system_clock::time_point wall;
    std::chrono::steady_clock::time_point steady;
  };
  static Now now() { return {std::chrono::system_clock::now(), std::chrono::steady_clock::now()}; }

  /// Written to disk in steps of this much, in advance: a crash never forgets a write.
  static constexpr Bytes kStep = Bytes::mib(64);

  /// Loads `state_file` where it exists; a damaged one counts as a day used up, since that cannot
  /// wear the flash. Fails, naming the file, where it cannot be read or written.
  [[nodiscard]] static Result<std::unique_ptr<WriteBudget>> open(std::string state_file,
                                                                 Bytes per_day, Now now);

  /// Lets time pass: renews the budget when a new day has come.
  void advance(Now now);

  /// Charges `amount` if today's budget covers it, else charges nothing and says no. Also says no
  /// if the state cannot be saved (see error()).
  [[nodiscard]] bool charge(Bytes amount);

  [[nodiscard]] Bytes left() const;
  [[nodiscard]] Bytes per_day() const { return per_day_; }
  /// The last failure to save, empty if none.
  [[nodiscard]] std::string error() const;

 private:
  WriteBudget(std::string state_file, Bytes per_day)
      : state_file_(std::move(state_file)), per_day_(per_day) {}
  [[nodiscard]] bool save(Bytes reserved);

  const std::string state_file_;
  const Bytes per_day_;
  mutable std::mutex mutex_;
  std::int64_t day_ = 0;  // days since 1970, UTC, that used_ belongs to
  Bytes used_;
  Bytes saved_;           // what the file says: at least used_
  bool renewed_ = false;  // in this process
  std::chrono::steady_clock::time_point renewed_at_{};
  std::string error_;
};

}  // namespace fileballoon
