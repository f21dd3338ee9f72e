#include "uffd/faultd/client.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "uffd/faultd/packet_socket.h"
#include "uffd/pager/paging_protocol.h"

namespace fileballoon::faultd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kRetry{1};

Result<std::string> find_program(const std::string& given) {
  const auto found = [](const std::string& program) {
    return Result<std::string>(boost::system::in_place_value, program);
  };
  if (!given.empty()) {
    return found(given);
  }
  std::array<char, PATH_MAX> self{};
  std::string directory;
  if (::readlink("/proc/self/exe", self.data(), self.size() - 1) > 0) {
    directory = self.data();
    directory.resize(directory.rfind('/'));
  }
  std::string looked;
  // Installed side by side, the build tree (its tests lie one folder deeper), and the usual places.
  for (const std::string& candidate :
       {directory + "/fileballoon-faultd", directory + "/../uffd/fileballoon-faultd",
        directory + "/../sbin/fileballoon-faultd", directory + "/../../uffd/fileballoon-faultd",
        directory + "/../libexec/fileballoon/fileballoon-faultd",
        std::string("/usr/sbin/fileballoon-faultd"),
        std::string("/usr/local/sbin/fileballoon-faultd")}) {
    if (::access(candidate.c_str(), X_OK) == 0) {
      return found(candidate);
    }
    looked += (looked.empty() ? "" : ", ") + candidate;
  }
  return Error{"the fault keeper's program is not installed; looked for " + looked};
}

// Kills the keeper behind `pidfd` and waits until its userfaultfds are closed. Not one that holds
// paged-out frames: their content is in its memory, and zeros would take its place. If it was
// stopped, it is told to go on.
void kill_keeper(int pidfd, const std::string& socket) {
  if (::access(paging_marker(socket).c_str(), F_OK) == 0) {
    (void)::syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, nullptr, 0);
    return;
  }
  (void)::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  pollfd gone{pidfd, POLLIN, 0};
  (void)::poll(&gone, 1, 1000);
}

}  // namespace

FaultdClient::FaultdClient(const GuestRam& ram, Options options)
    : ram_(ram), options_(std::move(options)) {}

Result<std::unique_ptr<FaultdClient>> FaultdClient::attach(const GuestRam& ram, Options options) {
  std::unique_ptr<FaultdClient> client(new FaultdClient(ram, std::move(options)));
  auto connection = client->connect_or_start();
  if (connection.has_error()) {
    return connection.error();
  }
  client->connection_ = std::move(*connection);
  return client;
}

Result<FaultdClient::Connection> FaultdClient::connect() const {
  auto fd = connect_keeper(options_.socket);
  if (fd.has_error()) {
    return fd.error();
  }
  const auto peer = trusted_peer(fd->get());
  if (peer.has_error()) {
    return peer.error();
  }
  Connection connection;
  connection.fd = std::move(*fd);
  connection.pid = *peer;
  connection.pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, *peer, 0)));
  return connection;
}

template <class Reply>
bool FaultdClient::exchange(Connection& connection, const Request& request, Reply& reply,
                            std::chrono::milliseconds patience) const {
  const Received received = connection.fd.valid() && send_packet(connection.fd.get(), request)
                                ? receive_packet(connection.fd.get(), reply, patience)
                                : Received::broken;
  if (received == Received::packet) {
    return true;
  }
  if (received == Received::nothing) {
    // It hangs (stopped, or starved): the guest's faults hang with it. Dead is better, since the
    // kernel then answers them.
    kill_keeper(connection.pidfd.get(), options_.socket);
  }
  connection = {};
  return false;
}

bool FaultdClient::is_ours(const HelloReply& hello) const {
  if (hello.magic != kMagic || hello.version != kVersion || hello.pid != ram_.pid() ||
      hello.start_time != ram_.process().start_time || hello.refaults != options_.refaults ||
      hello.backing_count != ram_.backings().size()) {
    return false;
  }
  for (std::size_t i = 0; i < hello.backing_count; ++i) {
    const Backing& backing = ram_.backings()[i];
    if (hello.backings[i] != BackingId{backing.device, backing.inode, backing.size.count()}) {
      return false;
    }
  }
  return true;
}

Result<void> FaultdClient::start_keeper() const {
  const auto found = find_program(options_.program);
  if (found.has_error()) {
    return found.error();
  }
  const std::string& program = *found;
  std::vector<std::string> arguments = {
      program,      "--daemonize",
      "--pid",      std::to_string(ram_.pid()),
      "--socket",   options_.socket,
      "--refaults", options_.refaults == RefaultMode::kernel ? "kernel" : "engine",
      "--resolver", to_string(options_.resolver),
      "--shards",   std::to_string(options_.shards)};
  for (const Backing& backing : ram_.backings()) {
    arguments.insert(arguments.end(), {"--object", std::to_string(backing.device) + ":" +
                                                       std::to_string(backing.inode)});
  }
  std::vector<char*> argv;
  for (auto& argument : arguments) {
    argv.push_back(argument.data());
  }
  argv.push_back(nullptr);
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) {
    return Error{std::string("cannot start the fault keeper: pipe2: ") + std::strerror(errno)};
  }
  const UniqueFd read_end(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDERR_FILENO);
  // The keeper outlives its starter and must not hold its sockets: clients of a daemon that is gone
  // would connect to a listener that nobody serves (Boost.Asio's descriptors lack CLOEXEC).
  ::posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  // A caller that blocks signals or is leader of a group must not pass that on.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, program.c_str(), &actions, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return Error{"cannot start the fault keeper " + program + ": " + std::strerror(error)};
  }
  write_end.reset();
  std::string text;
  std::array<char, 512> buffer{};
  for (ssize_t got = 0; (got = ::read(read_end.get(), buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    return {};
  }
  while (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return Error{text.empty() ? "the fault keeper " + program + " ended at once" : text};
}

Result<FaultdClient::Connection> FaultdClient::connect_or_start() {
  if (auto connection = connect(); connection.has_error()) {
    if (is_listened_on(options_.socket)) {
      return connection.error();  // another one could not take its place
    }
  } else {
    HelloReply hello;
    if (exchange(*connection, Request{}, hello, options_.patience) && is_ours(hello)) {
      return connection;
    }
    if (!connection->fd.valid() && ::access(paging_marker(options_.socket).c_str(), F_OK) == 0) {
      return Error{"the fault keeper on " + options_.socket +
                   " gives no answer and holds paged-out frames of " + ram_.process().label() +
                   ": it is left alone, since their content would die with it"};
    }
    // Of another version or mode, or of another VM that had this socket.
    if (connection->fd.valid()) {
      Request leave;
      leave.operation = Operation::detach;
      DetachReply left;
      (void)exchange(*connection, leave, left, options_.patience);
      pollfd gone{connection->pidfd.get(), POLLIN, 0};
      (void)::poll(&gone, 1, 1000);
    }
  }
  if (const auto started = start_keeper(); started.has_error()) {
    return started.error();
  }
  ++restarts_;
  auto connection = connect();
  HelloReply hello;
  if (connection.has_error()) {
    return connection.error();
  }
  if (!exchange(*connection, Request{}, hello, options_.patience) || !is_ours(hello)) {
    return Error{"the fault keeper on " + options_.socket + " keeps other memory than " +
                 ram_.process().label() + "'s"};
  }
  return connection;
}

// One exchange on the main connection; replaces a keeper that is gone, at most once a second.
template <class Reply>
bool FaultdClient::ask(const Request& request, Reply& reply) {
  if (detached_) {
    return false;
  }
  if (connection_.fd.valid() && exchange(connection_, request, reply, options_.patience)) {
    return true;
  }
  if (Clock::now() < retry_at_ || !ram_.process().alive()) {
    return false;
  }
  retry_at_ = Clock::now() + kRetry;
  auto connection = connect_or_start();
  if (connection.has_error()) {
    return false;
  }
  connection_ = std::move(*connection);
  return exchange(connection_, request, reply, options_.patience);
}

DiscardOutcome FaultdClient::discard(std::uint32_t backing, HostRange range) {
  Request request;
  request.operation = Operation::discard;
  request.backing = backing;
  request.start = range.start.bytes();
  request.size = range.size.count();
  DiscardReply reply;
  const std::lock_guard lock(mutex_);
  if (!ask(request, reply)) {
    reply.outcome = {};
    reply.outcome.failed = static_cast<std::uint32_t>(range.pages());
  }
  return reply.outcome;
}

Result<StatsReply> FaultdClient::stats() {
  Request request;
  request.operation = Operation::stats;
  StatsReply reply;
  const std::lock_guard lock(mutex_);
  if (!ask(request, reply)) {
    return Error{"no fault keeper answers on " + options_.socket +
                 "; the kernel answers the guest's faults meanwhile"};
  }
  return reply;
}

Result<bool> FaultdClient::wait_refaults(
    std::chrono::milliseconds timeout, const std::function<void(std::uint32_t, HostRange)>& visit) {
  const std::lock_guard lock(wait_mutex_);
  if (!waiting_.fd.valid()) {
    auto connection = connect();
    if (connection.has_error()) {
      return connection.error();
    }
    waiting_ = std::move(*connection);
  }
  Request request;
  request.operation = Operation::drain;
  request.timeout_ms = static_cast<std::uint32_t>(timeout.count());
  DrainReply reply;
  if (!exchange(waiting_, request, reply, timeout + options_.patience)) {
    return Error{"the fault keeper on " + options_.socket + " went away"};
  }
  for (std::size_t i = 0; i < std::min<std::size_t>(reply.count, kMaxRanges); ++i) {
    const RefaultedRange& range = reply.ranges[i];
    visit(static_cast<std::uint32_t>(range.backing),
          HostRange{HostOffset(range.start), Bytes(range.size)});
  }
  return reply.complete != 0;
}

Result<void> FaultdClient::detach() {
  Request request;
  request.operation = Operation::detach;
  DetachReply reply;
  const std::lock_guard lock(mutex_);
  detached_ = true;
  if (!connection_.fd.valid()) {
    return {};  // there is none
  }
  UniqueFd pidfd = std::move(connection_.pidfd);
  connection_.pidfd = UniqueFd(::fcntl(pidfd.get(), F_DUPFD_CLOEXEC, 0));
  (void)exchange(connection_, request, reply, options_.patience);
  pollfd gone{pidfd.get(), POLLIN, 0};
  if (::poll(&gone, 1, static_cast<int>(options_.patience.count())) == 0) {
    kill_keeper(pidfd.get(), options_.socket);
  }
  connection_ = {};
  return {};
}

pid_t FaultdClient::keeper() const {
  const std::lock_guard lock(mutex_);
  return connection_.fd.valid() ? connection_.pid : 0;
}

unsigned FaultdClient::restarts() const {
  const std::lock_guard lock(mutex_);
  return restarts_;
}

bool is_kept(const std::string& socket) {
  return is_listened_on(socket) || ::access(paging_marker(socket).c_str(), F_OK) == 0;
}

Result<std::string> default_socket(const GuestRam& ram) {
  std::vector<std::string> directories = {"/run/fileballoon"};
  if (const char* user = std::getenv("XDG_RUNTIME_DIR"); user != nullptr && ::geteuid() != 0) {
    directories.push_back(std::string(user) + "/fileballoon");
  }
  for (const std::string& directory : directories) {
    (void)::mkdir(directory.c_str(), 0755);
    if (::access(directory.c_str(), W_OK | X_OK) == 0) {
      return Result<std::string>(boost::system::in_place_value,
                                 directory + "/faultd-" + std::to_string(ram.pid()) + "-" +
                                     std::to_string(ram.process().start_time) + ".sock");
    }
  }
  return Error{"cannot write to " + directories.back() + ", where fault keepers listen: " +
               std::strerror(errno) + "; make that folder, or run as root"};
}

}  // namespace fileballoon::faultd
