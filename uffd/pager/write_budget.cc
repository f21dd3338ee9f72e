#include "uffd/pager/write_budget.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "fileballoon/unique_fd.h"

namespace fileballoon {
namespace {

std::int64_t day_of(std::chrono::system_clock::time_point wall) {
  return std::chrono::floor<std::chrono::days>(wall).time_since_epoch().count();
}

// A day is not renewed twice within less real time than this. Not 24 h: a process that was started
// in the evening gets the next day's budget at midnight, but the one after that only a day later.
constexpr std::chrono::hours kShortestDay{23};

std::string describe(const std::string& what, const std::string& file) {
  return what + " " + file + ": " + std::strerror(errno);
}

}  // namespace

Result<std::unique_ptr<WriteBudget>> WriteBudget::open(std::string state_file, Bytes per_day,
                                                       Now now) {
  std::unique_ptr<WriteBudget> budget(new WriteBudget(std::move(state_file), per_day));
  budget->day_ = day_of(now.wall);
  const UniqueFd fd(::open(budget->state_file_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() && errno != ENOENT) {
    return Error{describe("cannot read the write-budget file", budget->state_file_)};
  }
  if (fd.valid()) {
    std::array<char, 128> text{};
    const ssize_t got = ::read(fd.get(), text.data(), text.size() - 1);
    if (got < 0) {
      return Error{describe("cannot read the write-budget file", budget->state_file_)};
    }
    long long day = 0;
    unsigned long long used = 0;
    int length = 0;
    if (std::sscanf(text.data(), "fileballoon-write-budget 1 day %lld used %llu\n%n", &day, &used,
                    &length) == 2 &&
        length == got) {
      budget->day_ = day;
      budget->used_ = budget->saved_ = Bytes(used);
    } else {
      budget->used_ = budget->saved_ = per_day;
    }
  }
  budget->advance(now);
  if (!budget->save(budget->used_)) {
    return Error{budget->error_ + "; give a path in a directory that can be written"};
  }
  return budget;
}

void WriteBudget::advance(Now now) {
  const std::lock_guard guard(mutex_);
  const std::int64_t today = day_of(now.wall);
  if (today == day_) {
    return;
  }
  if (today < day_) {
    // The wall clock went back. What was written stays written; count it for the day that it is
    // now, and do not take the way forward again for a new day.
    day_ = today;
    renewed_ = true;
    renewed_at_ = now.steady;
    return;
  }
  if (renewed_ && now.steady - renewed_at_ < kShortestDay) {
    return;  // the wall clock jumped: that day has not really passed
  }
  day_ = today;
  used_ = Bytes(0);
  saved_ = Bytes(0);
  renewed_ = true;
  renewed_at_ = now.steady;
}

bool WriteBudget::charge(Bytes amount) {
  const std::lock_guard guard(mutex_);
  if (used_ + amount > per_day_) {
    return false;
  }
  const Bytes after = used_ + amount;
  if (after > saved_ && !save(std::min(per_day_, after + kStep))) {
    return false;
  }
  used_ = after;
  return true;
}

Bytes WriteBudget::left() const {
  const std::lock_guard guard(mutex_);
  return per_day_ - used_;
}

std::string WriteBudget::error() const {
  const std::lock_guard guard(mutex_);
  return error_;
}

bool WriteBudget::save(Bytes reserved) {
  const std::string temporary = state_file_ + ".new";
  std::array<char, 128> text{};
  const int length = std::snprintf(
      text.data(), text.size(), "fileballoon-write-budget 1 day %lld used %llu\n",
      static_cast<long long>(day_), static_cast<unsigned long long>(reserved.count()));
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  // fsync before rename: after a power cut either the old or the new state is there, never none.
  if (!fd.valid() || ::write(fd.get(), text.data(), static_cast<std::size_t>(length)) != length ||
      ::fsync(fd.get()) != 0 || ::rename(temporary.c_str(), state_file_.c_str()) != 0) {
    error_ = describe("cannot save the write-budget file", state_file_);
    return false;
  }
  error_.clear();
  saved_ = reserved;
  return true;
}

}  // namespace fileballoon
