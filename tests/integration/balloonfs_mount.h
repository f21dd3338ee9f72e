// BalloonMount: a real balloonfs on a temporary folder for one test, with its processes and its
// files. The destructor ends the processes, unmounts and removes everything, whatever the test did.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <string>
#include <vector>

namespace fileballoon::test {

inline constexpr long kMib = 1 << 20;

/// What the tests of this folder need of the machine; empty if all is there.
[[nodiscard]] std::string why_no_balloonfs();

/// Runs a program to its end: exit status (or 128 + signal) and everything it printed.
struct RunResult {
  int status = -1;
  std::string output;
};
[[nodiscard]] RunResult run_program(const std::vector<std::string>& arguments);

class BalloonMount {
 public:
  BalloonMount();
  ~BalloonMount();
  BalloonMount(const BalloonMount&) = delete;
  BalloonMount& operator=(const BalloonMount&) = delete;

  /// Starts `balloonfs MOUNTPOINT -f -o options` and waits until `stats` can be read; false with
  /// output() where it ended instead.
  [[nodiscard]] bool start(const std::string& options);
  /// SIGTERM, and waits; the exit status.
  int stop();

  [[nodiscard]] std::string mount_point() const { return folder_ + "/mnt"; }
  [[nodiscard]] std::string socket() const { return folder_ + "/host"; }
  [[nodiscard]] std::string channel() const { return "channel=unix:" + socket(); }
  [[nodiscard]] std::string file(const std::string& name) const {
    return mount_point() + "/" + name;
  }
  /// What balloonfs has logged so far.
  [[nodiscard]] std::string output() const;

  /// A number of `stats`; -1 where it cannot be read.
  [[nodiscard]] long number(const std::string& key) const;
  [[nodiscard]] std::string stats() const;
  /// errno of writing `text` to a file of the mount, 0 if it was taken.
  [[nodiscard]] int write(const std::string& name, const std::string& text) const;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// The process of that name ("balloonfs-infl") below the agent; 0 if there is none.
  [[nodiscard]] pid_t child(const std::string& name) const;
  [[nodiscard]] bool is_mounted() const;
  /// Drops the balloon pages that nobody holds or has locked from the page cache, as reclaim would
  /// (POSIX_FADV_DONTNEED on the file that the inflater has open). Throws where there is none.
  void evict() const;
  /// Waits for the end of the agent's first process; its exit status, -1 on timeout.
  int wait_end(int seconds);

 private:
  std::string folder_;
  pid_t pid_ = 0;
};

/// A test with a balloonfs: skipped where the machine has none, and what the agent said is shown
/// where the test failed.
class BalloonfsTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  BalloonMount mount_;
};

}  // namespace fileballoon::test
