// FakeHost: a host daemon that discards nothing, for tests of balloonfs. It listens on a UNIX
// socket, speaks the real wire protocol, and does with reports what the test says: acknowledge,
// stay silent, refuse. One thread of its own; every public function is thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fileballoon/session.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon::test {

class FakeHost {
 public:
  enum class Answer {
    discarded,  ///< acknowledge every page
    silence,    ///< never acknowledge
    not_zero,   ///< say that every page holds data
    refused,
  };

  /// Listens at `socket_path`.
  explicit FakeHost(std::string socket_path);
  ~FakeHost();
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;

  void answer_with(Answer answer);
  /// Acknowledges what was kept back by silence.
  void answer_pending();
  /// Sent now if a session stands, and at the start of every later one.
  void set_limits(Limits limits);
  void send_purge(Bytes amount);
  /// How much of the guest's RAM has no memory behind it, as this host would measure it.
  void send_state(Bytes absent);
  /// Whether its HELLO offers to back frames, and whether it can.
  void offer_backing(bool offer);
  void back_with(bool backs);
  /// Bytes as they are, into the connection.
  void send_raw(std::string_view bytes);
  /// Closes the present connection; the listener goes on.
  void hang_up();
  /// Closes the listener too, or opens it again.
  void stop_listening();
  void listen();

  /// Counts and last values; read them through these.
  [[nodiscard]] std::uint64_t sessions() const;
  [[nodiscard]] std::uint64_t reported_pages() const;
  [[nodiscard]] std::uint64_t reports() const;
  [[nodiscard]] std::uint64_t ranges() const;
  [[nodiscard]] std::uint64_t unanswered() const;
  [[nodiscard]] std::uint64_t stats_messages() const;
  [[nodiscard]] wire::Stats last_stats() const;
  [[nodiscard]] wire::Hello hello() const;
  [[nodiscard]] std::vector<FrameRange> all_ranges() const;
  [[nodiscard]] bool connected() const;
  /// Frames named by DEFLATED; those asked for by POPULATE; requests at once without an answer.
  [[nodiscard]] std::uint64_t deflated_pages() const;
  [[nodiscard]] std::uint64_t asked_pages() const;
  [[nodiscard]] std::uint64_t most_asked_at_once() const;

 private:
  void run();
  void accept_one();
  void read_some();
  void handle(const wire::Frame& frame);
  [[nodiscard]] wire::Hello own_hello() const;
  void answer_asked();
  void acknowledge(std::uint64_t batch, const wire::Report& report, Answer answer);
  void send(wire::Header header, const wire::Message& message);
  void close_connection();
  void open_listener();

  std::string path_;
  mutable std::mutex mutex_;
  UniqueFd listener_;
  UniqueFd connection_;
  UniqueFd wake_;
  bool stop_ = false;
  Session session_;
  wire::Decoder decoder_;
  Answer answer_ = Answer::discarded;
  std::vector<std::pair<std::uint64_t, wire::Report>> pending_;
  std::vector<std::pair<std::uint64_t, wire::Populate>> asked_;
  bool offers_ = true;
  bool backs_ = true;
  std::uint64_t deflated_pages_ = 0;
  std::uint64_t asked_pages_ = 0;
  std::uint64_t most_asked_ = 0;
  std::optional<Limits> limits_;
  std::uint64_t sessions_ = 0;
  std::uint64_t reported_pages_ = 0;
  std::uint64_t reports_ = 0;
  std::uint64_t stats_messages_ = 0;
  wire::Stats last_stats_;
  wire::Hello hello_;
  std::vector<FrameRange> all_ranges_;
  std::thread thread_;
};

}  // namespace fileballoon::test
