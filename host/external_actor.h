// ExternalActor: somebody else's program in charge of a VM's target (`--actor external:PATH`). The
// daemon starts it as `PATH --vm NAME --socket CONTROL_SOCKET`, restarts it when it ends, tells it
// the target, and otherwise only watches. The program subscribes on the control socket
// (actor-subscribe), gets a `target` notification whenever the target changes, and may say how it
// gets on (actor-report). One that dies, says nothing, or says nonsense has no effect on the VM but
// an event; the VM stays as it is. Control thread only.
#pragma once

#include <sys/types.h>

#include <boost/json.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/unique_fd.h"
#include "host/asio.h"
#include "host/event_log.h"

namespace fileballoon::host {

class ExternalActor final : public std::enable_shared_from_this<ExternalActor> {
 public:
  /// What the program is told.
  struct Target {
    std::optional<Bytes> footprint;  ///< wanted; none: the guest may have all
    Bytes minimum;
    bool operator==(const Target&) const = default;
  };
  using Push = std::function<void(const boost::json::object&)>;
  using Clock = std::chrono::steady_clock;

  /// First pause before a program that ended is started again, and the longest; one that ran for
  /// kGoodRun starts anew.
  static constexpr std::chrono::milliseconds kFirstBackOff{1000};
  static constexpr std::chrono::milliseconds kMaxBackOff{60'000};
  static constexpr std::chrono::seconds kGoodRun{30};
  /// A program that has not subscribed by then is named in an event.
  static constexpr std::chrono::seconds kSubscribePatience{10};
  /// So many bad messages of one run end it.
  static constexpr unsigned kMostNonsense = 8;
  /// How long it has to end after SIGTERM.
  static constexpr std::chrono::seconds kEndPatience{2};

  ExternalActor(asio::io_context& control, EventLog& events, std::string vm, Bytes ram,
                std::string path, std::string socket);
  ~ExternalActor();

  /// Whether `path` is a program that could be started. The error says what it is instead.
  [[nodiscard]] static Result<void> check(const std::string& path);

  void start();
  /// Ends the program (SIGTERM, then SIGKILL) and starts it no more.
  void stop();

  /// Tells the program, if it differs from what it was told.
  void set_target(const Target& target);
  /// Watches: what is measured, so that what the program says can be judged.
  void set_footprint(Bytes footprint) { footprint_ = footprint; }

  [[nodiscard]] const std::string& path() const { return path_; }
  /// Whether `peer` is the program, or was started by it.
  [[nodiscard]] bool is_program(pid_t peer) const;
  /// actor-subscribe: `push` sends to the program until unsubscribe(). Returns the target now.
  [[nodiscard]] boost::json::object subscribe(Push push);
  void unsubscribe();
  /// actor-report. Throws RpcFailure where it is nonsense.
  void report(const boost::json::object& params);
  /// The program sent something that cannot be understood.
  void nonsense(const std::string& what);

  /// For `stats`.
  [[nodiscard]] boost::json::object describe() const;

 private:
  [[nodiscard]] asio::awaitable<void> run();
  [[nodiscard]] Result<void> spawn();
  [[nodiscard]] asio::awaitable<std::string> wait_for_end();
  [[nodiscard]] asio::awaitable<void> pause(std::chrono::milliseconds time);
  [[nodiscard]] boost::json::object target_message() const;
  void end_program(int signal);

  asio::io_context& control_;
  EventLog& events_;
  std::string vm_;
  Bytes ram_;
  std::string path_;
  std::string socket_;
  pid_t pid_ = 0;
  UniqueFd pidfd_;
  Push push_;
  Target target_;
  Bytes footprint_;
  std::string said_state_;
  std::string said_text_;
  std::string last_end_;
  unsigned nonsense_ = 0;
  unsigned starts_ = 0;
  bool stopping_ = false;
  Signal changed_;
};

}  // namespace fileballoon::host
