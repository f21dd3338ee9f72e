#include "host/control_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <optional>
#include <utility>

#include "host/actor_subscription.h"
#include "host/keep_running.h"

namespace fileballoon::host {
namespace {

namespace json = boost::json;

json::object error_reply(const json::value& id, RpcCode code, std::string_view message) {
  return {{"jsonrpc", "2.0"},
          {"id", id},
          {"error", {{"code", static_cast<int>(code)}, {"message", message}}}};
}

pid_t peer_of(int socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 ? peer.pid : 0;
}

/// One client.
class Connection final : public std::enable_shared_from_this<Connection>, public ControlClient {
 public:
  Connection(LocalSocket socket, std::chrono::milliseconds write_timeout, Daemon& daemon,
             EventLog& events, std::shared_ptr<std::set<ControlClient*>> clients)
      : socket_(std::move(socket)),
        write_timeout_(write_timeout),
        daemon_(daemon),
        events_(events),
        clients_(std::move(clients)),
        write_timer_(socket_.get_executor()),
        changed_(socket_.get_executor()),
        actor_(daemon, peer_of(socket_.native_handle())) {
    clients_->insert(this);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override {
    clients_->erase(this);
    if (subscription_) {
      events_.unsubscribe(*subscription_);
    }
  }

  void start() {
    spawn(&Connection::read_loop);
    spawn(&Connection::write_loop);
  }
  void close() override;
  /// Sends one line and closes.
  void reject(std::string_view message) {
    push(error_reply(nullptr, RpcCode::refused, message));
    finished_ = true;
    spawn(&Connection::write_loop);
  }

 private:
  /// Runs a loop of this connection, which a failure of it closes.
  void spawn(asio::awaitable<void> (Connection::*loop)());
  [[nodiscard]] asio::awaitable<void> read_loop();
  [[nodiscard]] asio::awaitable<void> write_loop();
  [[nodiscard]] asio::awaitable<void> handle(std::string line);
  [[nodiscard]] json::value events(const json::object& params);
  void push(const json::object& object);

  LocalSocket socket_;
  std::chrono::milliseconds write_timeout_;
  Daemon& daemon_;
  EventLog& events_;
  std::shared_ptr<std::set<ControlClient*>> clients_;
  asio::steady_timer write_timer_;
  Signal changed_;
  ActorSubscription actor_;
  std::deque<std::string> outbox_;
  std::size_t backlog_ = 0;  // bytes in outbox_
  std::optional<EventLog::SubscriberId> subscription_;
  bool finished_ = false;  // nothing more will be pushed: close when all is sent
  bool closed_ = false;
};

void Connection::spawn(asio::awaitable<void> (Connection::*loop)()) {
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this(), loop] { return (self.get()->*loop)(); },
      [self = shared_from_this()](const std::exception_ptr& failure) {
        if (failure) {
          spdlog::error("a client of the control socket is dropped: {}", what_of(failure));
          self->close();
        }
      });
}

void Connection::close() {
  if (std::exchange(closed_, true)) {
    return;
  }
  actor_.end();
  if (subscription_) {
    events_.unsubscribe(*std::exchange(subscription_, std::nullopt));
  }
  error_code ignored;
  socket_.close(ignored);
  changed_.notify();
}

void Connection::push(const json::object& object) {
  if (closed_ || finished_) {
    return;
  }
  // What waits already counts, not this object: a long reply is no fault of the client's.
  if (backlog_ > ControlServer::kMaxBacklog) {
    spdlog::warn("a client of the control socket does not read; dropped");
    close();
    return;
  }
  outbox_.push_back(json::serialize(object) + "\n");
  backlog_ += outbox_.back().size();
  changed_.notify();
}

asio::awaitable<void> Connection::read_loop() {
  std::string buffer;
  std::array<char, 4096> chunk;
  while (!closed_ && !finished_) {
    error_code error;
    const std::size_t n = co_await socket_.async_read_some(
        asio::buffer(chunk), asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      break;
    }
    buffer.append(chunk.data(), n);
    std::size_t newline = 0;
    while (!closed_ && (newline = buffer.find('\n')) != std::string::npos) {
      std::string line = buffer.substr(0, newline);
      buffer.erase(0, newline + 1);
      if (line.find_first_not_of(" \t\r") != std::string::npos) {
        co_await handle(std::move(line));
      }
    }
    if (buffer.size() > ControlServer::kMaxLine) {
      push(error_reply(
          nullptr, RpcCode::invalid_request,
          fmt::format("a line of more than {} bytes; closing", ControlServer::kMaxLine)));
      break;
    }
  }
  // A client may shut its writing side and still wait for answers: send what is due, then close.
  finished_ = true;
  changed_.notify();
}

asio::awaitable<void> Connection::write_loop() {
  while (!closed_) {
    if (outbox_.empty()) {
      if (finished_) {
        break;
      }
      co_await changed_.wait();
      continue;
    }
    const std::string line = std::move(outbox_.front());
    outbox_.pop_front();
    // kMaxBacklog drops only who asks for more; one that asked, and reads nothing, has this.
    write_timer_.expires_after(write_timeout_);
    write_timer_.async_wait([self = shared_from_this()](const error_code& cancelled) {
      if (!cancelled) {
        spdlog::warn("a client of the control socket did not read for {} s; dropped",
                     std::chrono::duration<double>(self->write_timeout_).count());
        self->close();
      }
    });
    error_code error;
    co_await asio::async_write(socket_, asio::buffer(line),
                               asio::redirect_error(asio::use_awaitable, error));
    write_timer_.cancel();
    backlog_ -= line.size();
    if (error) {
      break;
    }
  }
  close();
}

json::value Connection::events(const json::object& raw) {
  const RpcParams params(raw);
  params.allow_only({"follow"});
  const bool follow = params.flag("follow");
  json::array recent;
  for (const json::object& event : events_.recent()) {
    recent.push_back(event);
  }
  if (follow && !subscription_) {
    subscription_ = events_.subscribe([this](const json::object& event) {
      push({{"jsonrpc", "2.0"}, {"method", "event"}, {"params", event}});
    });
  }
  return {{"recent", std::move(recent)}, {"following", subscription_.has_value()}};
}

asio::awaitable<void> Connection::handle(std::string line) {
  error_code error;
  const json::value request = json::parse(line, error);
  if (error) {
    actor_.nonsense("it sent a line that is not JSON");
    push(error_reply(nullptr, RpcCode::parse_error, "the line is not JSON: " + error.message()));
    co_return;
  }
  const json::object* object = request.if_object();
  const auto* method = object != nullptr ? object->if_contains("method") : nullptr;
  const auto* version = object != nullptr ? object->if_contains("jsonrpc") : nullptr;
  const auto* params = object != nullptr ? object->if_contains("params") : nullptr;
  const auto* id = object != nullptr ? object->if_contains("id") : nullptr;
  if (method == nullptr || !method->is_string() || version == nullptr || *version != "2.0" ||
      (params != nullptr && !params->is_object()) ||
      (id != nullptr && !id->is_string() && !id->is_number() && !id->is_null())) {
    actor_.nonsense("it sent something that is no request");
    push(error_reply(nullptr, RpcCode::invalid_request,
                     R"(a request is {"jsonrpc":"2.0","id":1,"method":"...","params":{...}})"));
    co_return;
  }
  const json::object no_params;
  const json::object& arguments = params != nullptr ? params->get_object() : no_params;
  json::object reply{{"jsonrpc", "2.0"}, {"id", id != nullptr ? *id : json::value()}};
  try {
    if (method->get_string() == "events") {
      reply["result"] = events(arguments);
    } else if (method->get_string() == "actor-subscribe") {
      reply["result"] =
          actor_.subscribe(arguments, [this](const json::object& message) { push(message); });
    } else if (method->get_string() == "actor-report") {
      reply["result"] = actor_.report(arguments);
    } else {
      reply["result"] = co_await daemon_.call(method->get_string(), arguments);
    }
  } catch (const RpcFailure& failure) {
    actor_.nonsense(failure.what());
    reply = error_reply(reply["id"], failure.code(), failure.what());
  }
  if (id != nullptr) {  // without an id it is a notification, which has no reply
    push(reply);
  }
}

std::string errno_text() { return std::strerror(errno); }

}  // namespace

ControlServer::ControlServer(asio::io_context& control, const Config& config, Daemon& daemon,
                             EventLog& events)
    : control_(control),
      config_(config),
      daemon_(daemon),
      events_(events),
      acceptor_(control),
      clients_(std::make_shared<std::set<ControlClient*>>()) {}

ControlServer::~ControlServer() = default;

void ControlServer::lock() {
  const std::filesystem::path folder = std::filesystem::path(config_.socket).parent_path();
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) {
    throw std::runtime_error(fmt::format("cannot make the folder {} of the control socket: {}",
                                         folder.string(), failed.message()));
  }
  const std::string path = config_.socket + ".lock";
  lock_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock_.valid()) {
    throw std::runtime_error(
        fmt::format("cannot open {}: {}; run fileballoond as root, or choose "
                    "another control socket with --socket",
                    path, errno_text()));
  }
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    throw std::runtime_error(
        fmt::format("another fileballoond serves the control socket {} already (its lock {} is "
                    "held)",
                    config_.socket, path));
  }
}

void ControlServer::listen() {
  struct stat info {};
  if (::lstat(config_.socket.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      throw std::runtime_error(
          fmt::format("{} exists and is not a socket; remove it or choose another control socket",
                      config_.socket));
    }
    ::unlink(config_.socket.c_str());  // left over: nobody holds the lock
  }
  const auto fail = [&](const std::string& why) -> std::runtime_error {
    return std::runtime_error(
        fmt::format("cannot make the control socket {}: {}", config_.socket, why));
  };
  gid_t group = static_cast<gid_t>(-1);
  if (!config_.socket_group.empty()) {
    const struct group* entry = ::getgrnam(config_.socket_group.c_str());
    if (entry == nullptr) {
      throw fail(fmt::format("there is no group '{}' (socket_group)", config_.socket_group));
    }
    group = entry->gr_gid;
  }
  try {
    // Nobody may connect before the mode and the group are what they should be.
    const mode_t before = ::umask(0177);
    acceptor_.open();
    error_code error;
    acceptor_.bind(asio::local::stream_protocol::endpoint(config_.socket), error);
    ::umask(before);
    if (error) {
      throw fail(error.message());
    }
    bound_ = true;
    if ((group != static_cast<gid_t>(-1) &&
         ::chown(config_.socket.c_str(), static_cast<uid_t>(-1), group) != 0) ||
        ::chmod(config_.socket.c_str(), config_.socket_mode) != 0) {
      throw fail(errno_text());
    }
    acceptor_.listen();
  } catch (const boost::system::system_error& error) {
    throw fail(error.what());
  }
  keep_running(control_, events_, "", "the control socket", [this] { return accept_loop(); });
}

asio::awaitable<void> ControlServer::accept_loop() {
  while (acceptor_.is_open()) {
    LocalSocket socket(control_);
    error_code error;
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) {
      break;
    }
    if (error) {  // out of descriptors: do not spin
      asio::steady_timer pause(control_, std::chrono::milliseconds(100));
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    auto connection = std::make_shared<Connection>(std::move(socket), config_.write_timeout,
                                                   daemon_, events_, clients_);
    if (clients_->size() > config_.max_clients) {
      connection->reject(fmt::format("too many clients ({}, max_clients in the configuration)",
                                     config_.max_clients));
    } else {
      connection->start();
    }
  }
}

void ControlServer::stop() {
  error_code ignored;
  acceptor_.close(ignored);
  for (ControlClient* client : std::set<ControlClient*>(*clients_)) {
    client->close();
  }
  if (std::exchange(bound_, false)) {
    ::unlink(config_.socket.c_str());
  }
}

}  // namespace fileballoon::host
