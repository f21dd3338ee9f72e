// A real fileballoond, a process that stands in for a VMM, and a scripted guest at the far end of
// the channel. The stand-in shares a memfd with the test and maps it as guest RAM, so tests see
// what a discard did to memory; everything ends with the test (PR_SET_PDEATHSIG, owners).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fileballoon/session.h"
#include "fileballoon/unique_fd.h"
#include "fileballoon/wire.h"
#include "host/json_line_client.h"
#include "tests/eventually.h"

namespace fileballoon::host {

using namespace std::chrono_literals;

/// RAM of a stand-in VM, where its size is of no interest.
inline constexpr Bytes kRam = Bytes::mib(64);

/// A child process; killed and reaped by its owner.
class Child {
 public:
  Child() = default;
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  Child& operator=(Child&& other) noexcept;
  ~Child();
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Sends `signal` and waits for the end; the wait status.
  int end(int signal);
  [[nodiscard]] bool running() const { return pid_ > 0; }

 private:
  pid_t pid_ = 0;
};

/// RAM that a stand-in VMM maps. `shared` false: private, as QEMU without share=on.
class StandInVm {
 public:
  explicit StandInVm(Bytes size, bool shared = true);
  ~StandInVm();
  StandInVm(const StandInVm&) = delete;
  StandInVm& operator=(const StandInVm&) = delete;

  [[nodiscard]] pid_t pid() const { return vmm_.pid(); }
  [[nodiscard]] std::span<std::byte> page(std::uint64_t frame);
  /// Backs `count` frames from `first` with zero pages, as a guest that has used and cleared them.
  void touch(std::uint64_t first, std::uint64_t count);
  [[nodiscard]] Bytes footprint() const;
  void kill() { vmm_.end(9); }

 private:
  Bytes size_;
  UniqueFd memfd_;
  std::byte* memory_ = nullptr;
  Child vmm_;
};

/// The guest's end of a channel: listens as QEMU's chardev does, and says what a test wants.
class ScriptedGuest {
 public:
  explicit ScriptedGuest(std::string socket);
  ~ScriptedGuest();

  [[nodiscard]] const std::string& socket() const { return path_; }
  /// Waits for the daemon to connect; drops an older connection.
  [[nodiscard]] bool accept(std::chrono::milliseconds patience = 8s);
  /// accept() and the whole handshake.
  [[nodiscard]] bool connect();
  /// Handshake on the connection there is, as a new agent.
  [[nodiscard]] bool shake_hands();
  void send(const wire::Message& message);
  void send(wire::Header header, const wire::Message& message);
  void send_bytes(std::span<const std::byte> bytes);
  /// The next frame of the session, or nothing if the connection closed or none came.
  [[nodiscard]] std::optional<wire::Frame> receive(std::chrono::milliseconds patience = 3s);
  /// The next frame of type T; others are dropped.
  template <class T>
  [[nodiscard]] std::optional<T> expect(std::chrono::milliseconds patience = 3s) {
    while (auto frame = receive(patience)) {
      if (auto* message = std::get_if<T>(&frame->message)) {
        return std::move(*message);
      }
    }
    return std::nullopt;
  }
  /// Whether the daemon has closed the connection (reads what is left).
  [[nodiscard]] bool closed_by_host(std::chrono::milliseconds patience = 5s);
  void hang_up() { connection_.reset(); }

  Session session;
  wire::Hello hello;

 private:
  std::string path_;
  UniqueFd listener_;
  UniqueFd connection_;
  wire::Decoder decoder_;
  std::vector<std::byte> unread_;
};

/// What a command printed, and its exit status.
struct Output {
  int status = -1;
  std::string text;   ///< standard output
  std::string error;  ///< standard error
  [[nodiscard]] boost::json::value json() const { return boost::json::parse(text); }
};

class DaemonTest : public ::testing::Test {
 protected:
  DaemonTest();
  ~DaemonTest() override;

  /// Starts the daemon and waits until it answers.
  void start(const std::string& config = "");
  /// Starts it in the foreground where it is expected to end by itself.
  [[nodiscard]] Output run_daemon(std::vector<std::string> arguments);
  [[nodiscard]] Output ctl(std::vector<std::string> arguments);
  /// Runs a program to its end (15 s at most).
  [[nodiscard]] Output run(std::vector<std::string> words);
  [[nodiscard]] boost::json::value call(std::string_view method, boost::json::object params = {});
  /// Attaches `vm` as `name` and shakes hands.
  void attach(const std::string& name, const StandInVm& vm, ScriptedGuest& guest);
  [[nodiscard]] boost::json::object stats(const std::string& name);
  [[nodiscard]] std::uint64_t counter(const std::string& name, std::string_view which);
  /// Whether an event of this kind has been published.
  [[nodiscard]] bool has_event(std::string_view kind, std::string_view vm = "");
  /// The text of the last event of this kind; empty without one.
  [[nodiscard]] std::string event(std::string_view kind);
  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
  [[nodiscard]] std::string log() const;

  Child daemon_;

 private:
  [[nodiscard]] std::optional<std::string> last_event(std::string_view kind, std::string_view vm);

  std::string folder_;
};

}  // namespace fileballoon::host
