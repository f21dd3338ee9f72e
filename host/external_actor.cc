#include "host/external_actor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fileballoon/policy.h"
#include "host/keep_running.h"
#include "host/rpc.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

constexpr std::array<std::string_view, 3> kStates = {"working", "at-target", "stuck"};
constexpr std::size_t kMaxText = 200;

/// Text of a stranger inside a message: nothing that a terminal would obey.
std::string printable(std::string text) {
  text.resize(std::min(text.size(), kMaxText));
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '?');
  return text;
}

/// The child's part, after fork(): only what is async-signal-safe.
[[noreturn]] void become(const char* path, char* const* argv, pid_t parent) {
  ::setsid();  // what it starts belongs to its session, by which is_program() knows it
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) {
    ::_exit(127);  // the daemon died before the line above
  }
  ::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDWR);
  ::dup2(null, STDIN_FILENO);
  // It must not hold the daemon's descriptors: guest RAM among them, and its listening socket.
  ::syscall(SYS_close_range, 3U, ~0U, 0U);
  ::execv(path, argv);
  ::_exit(127);
}

std::string end_of(int code, int status) {
  return code == CLD_EXITED ? fmt::format("exited with status {}", status)
                            : fmt::format("was ended by signal {}", status);
}

}  // namespace

ExternalActor::ExternalActor(asio::io_context& control, EventLog& events, std::string vm, Bytes ram,
                             std::string path, std::string socket)
    : control_(control),
      events_(events),
      vm_(std::move(vm)),
      ram_(ram),
      path_(std::move(path)),
      socket_(std::move(socket)),
      changed_(control.get_executor()) {}

ExternalActor::~ExternalActor() = default;

Result<void> ExternalActor::check(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return Error{fmt::format("the actor {} cannot be started: {}", path, std::strerror(errno))};
  }
  if (!S_ISREG(info.st_mode) || ::access(path.c_str(), X_OK) != 0) {
    return Error{fmt::format("the actor {} is not an executable file", path)};
  }
  return {};
}

void ExternalActor::start() {
  keep_running(control_, events_, vm_, "the watch over the actor",
               [self = shared_from_this()] { return self->run(); });
}

void ExternalActor::stop() {
  if (!std::exchange(stopping_, true)) {
    push_ = nullptr;
    end_program(SIGTERM);
    changed_.notify();
  }
}

void ExternalActor::end_program(int signal) {
  if (pidfd_.valid()) {
    (void)::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0);
  }
}

Result<void> ExternalActor::spawn() {
  if (const Result<void> good = check(path_); !good) {
    return good;
  }
  std::array<std::string, 5> words = {path_, "--vm", vm_, "--socket", socket_};
  std::array<char*, 6> argv{};
  for (std::size_t i = 0; i < words.size(); ++i) {
    argv.at(i) = words.at(i).data();
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    become(path_.c_str(), argv.data(), parent);
  }
  if (pid < 0) {
    return Error{fmt::format("the actor {} cannot be started: {}", path_, std::strerror(errno))};
  }
  pid_ = pid;
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  ++starts_;
  nonsense_ = 0;
  said_state_.clear();
  said_text_.clear();
  return {};
}

asio::awaitable<void> ExternalActor::pause(std::chrono::milliseconds time) {
  asio::steady_timer timer(control_, time);
  timer.async_wait([self = shared_from_this()](const error_code&) { self->changed_.notify(); });
  const auto until = Clock::now() + time;
  while (!stopping_ && Clock::now() < until) {
    co_await changed_.wait();
  }
}

/// Waits until the program has ended, and reaps it.
asio::awaitable<std::string> ExternalActor::wait_for_end() {
  const auto begin = Clock::now();
  std::optional<Clock::time_point> stopped_at;
  bool is_silence_told = false;
  while (true) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG) != 0 ||
        info.si_pid == pid_) {
      pid_ = 0;
      pidfd_.reset();
      co_return end_of(info.si_code, info.si_status);
    }
    const auto now = Clock::now();
    if (stopping_) {
      stopped_at = stopped_at.value_or(now);
      if (now - *stopped_at > kEndPatience) {
        end_program(SIGKILL);
      }
    } else if (push_ == nullptr && !is_silence_told && now - begin > kSubscribePatience) {
      is_silence_told = true;
      events_.publish(Severity::warning, "actor-silent", vm_,
                      fmt::format("the actor {} runs (pid {}) and has not subscribed to the VM's "
                                  "target (actor-subscribe on {})",
                                  path_, pid_, socket_));
    }
    // Polled: a descriptor a program would be one more thing to cancel, for a wait of no urgency.
    asio::steady_timer timer(control_, std::chrono::milliseconds(100));
    error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

asio::awaitable<void> ExternalActor::run() {
  std::chrono::milliseconds back_off = kFirstBackOff;
  while (!stopping_) {
    const auto begin = Clock::now();
    // A run that failed may have left its program.
    const Result<void> started = pid_ > 0 ? Result<void>() : spawn();
    if (started) {  // no conditional expression: GCC 12 frees the result of a co_await in one twice
      last_end_ = co_await wait_for_end();
    } else {
      last_end_ = started.error().message;
    }
    push_ = nullptr;
    if (stopping_) {
      break;
    }
    if (Clock::now() - begin > kGoodRun) {
      back_off = kFirstBackOff;
    }
    events_.publish(
        Severity::error, started ? "actor-died" : "actor-not-started", vm_,
        started ? fmt::format("the actor {} {}; nobody brings the VM to its target until it is "
                              "started again in {:.0f} s",
                              path_, last_end_, std::chrono::duration<double>(back_off).count())
                : fmt::format("{}; trying again in {:.0f} s", last_end_,
                              std::chrono::duration<double>(back_off).count()));
    co_await pause(back_off);
    back_off = std::min(back_off * 2, kMaxBackOff);
  }
}

// --------------------------------------------------------------------------- what is said, and
// heard

json::object ExternalActor::target_message() const {
  return {{"name", vm_},
          {"ram_bytes", ram_.count()},
          {"footprint_target_bytes",
           target_.footprint ? json::value(target_.footprint->count()) : json::value(nullptr)},
          {"minimum_bytes", target_.minimum.count()},
          {"footprint_bytes", footprint_.count()}};
}

void ExternalActor::set_target(const Target& target) {
  if (target == target_) {
    return;
  }
  target_ = target;
  if (push_) {
    push_({{"jsonrpc", "2.0"}, {"method", "target"}, {"params", target_message()}});
  }
}

bool ExternalActor::is_program(pid_t peer) const {
  return pid_ > 0 && (peer == pid_ || ::getsid(peer) == pid_);
}

json::object ExternalActor::subscribe(Push push) {
  push_ = std::move(push);
  events_.publish(Severity::info, "actor-subscribed", vm_,
                  fmt::format("the actor {} is told the VM's target", path_));
  return target_message();
}

void ExternalActor::unsubscribe() {
  if (std::exchange(push_, nullptr) && !stopping_) {
    events_.publish(Severity::warning, "actor-unsubscribed", vm_,
                    fmt::format("the actor {} has closed its subscription", path_));
  }
}

void ExternalActor::report(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"name", "state", "text"});
  const std::string state = params.text("state");
  if (std::find(kStates.begin(), kStates.end(), state) == kStates.end()) {
    throw RpcFailure(RpcCode::invalid_params,
                     fmt::format("unknown state '{}'; choose one of {}", printable(state),
                                 fmt::join(kStates, ", ")));
  }
  const std::string text = printable(params.optional_text("text").value_or(""));
  const Bytes tolerance =
      std::max(TargetPolicy::kLeastTolerance, Bytes(ram_.count() / TargetPolicy::kTolerancePart));
  if (state == "at-target" && target_.footprint && footprint_ > *target_.footprint + tolerance) {
    throw RpcFailure(
        RpcCode::invalid_params,
        fmt::format("it says at-target, and the footprint of {} is {} above the target",
                    to_string(footprint_), to_string(footprint_ - *target_.footprint)));
  }
  if (state != said_state_) {
    events_.publish_from_guest(
        Severity::info, "actor-report", vm_,
        fmt::format("the actor {} says: {}{}{}", path_, state, text.empty() ? "" : ": ", text));
  }
  said_state_ = state;
  said_text_ = text;
}

void ExternalActor::nonsense(const std::string& what) {
  events_.publish_from_guest(
      Severity::warning, "actor-nonsense", vm_,
      fmt::format("the actor {} is not understood: {}", path_, printable(what)));
  if (++nonsense_ == kMostNonsense) {
    events_.publish(Severity::error, "actor-stopped", vm_,
                    fmt::format("the actor {} has talked nonsense {} times; it is ended", path_,
                                kMostNonsense));
    end_program(SIGTERM);
  }
}

json::object ExternalActor::describe() const {
  return {{"path", path_},
          {"pid", pid_ > 0 ? json::value(pid_) : json::value(nullptr)},
          {"subscribed", push_ != nullptr},
          {"says", said_state_.empty() ? json::value(nullptr) : json::value(said_state_)},
          {"says_text", said_text_},
          {"starts", starts_},
          {"last_end", last_end_}};
}

}  // namespace fileballoon::host
