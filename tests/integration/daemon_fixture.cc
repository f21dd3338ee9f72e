#include "daemon_fixture.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace fileballoon::host {
namespace {

std::string slurp(const std::string& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// Waits for input on `fd`.
bool readable(int fd, std::chrono::milliseconds patience) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(patience.count())) == 1;
}

/// In a child: ends with the test.
void die_with_parent(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) {
    ::_exit(1);
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------- Child

Child& Child::operator=(Child&& other) noexcept {
  if (this != &other) {
    end(SIGKILL);
    pid_ = std::exchange(other.pid_, 0);
  }
  return *this;
}

Child::~Child() { end(SIGKILL); }

int Child::end(int signal) {
  int status = 0;
  if (pid_ > 0) {
    ::kill(pid_, signal);
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
  }
  return status;
}

// --------------------------------------------------------------------------------------- StandInVm

StandInVm::StandInVm(Bytes size, bool shared)
    : size_(size), memfd_(::memfd_create("guest-ram", MFD_CLOEXEC)) {
  if (::ftruncate(memfd_.get(), static_cast<off_t>(size.count())) != 0) {
    throw std::system_error(errno, std::generic_category(), "ftruncate");
  }
  memory_ = static_cast<std::byte*>(
      ::mmap(nullptr, size.count(), PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0));
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    die_with_parent(parent);
    if (!shared) {
      ::munmap(memory_, size.count());
      if (::mmap(nullptr, size.count(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                 0) == MAP_FAILED) {
        ::_exit(1);
      }
    }
    while (true) {
      ::pause();
    }
  }
  vmm_ = Child(pid);
  // No other child of the test may look as if it had this RAM, too.
  ::madvise(memory_, size.count(), MADV_DONTFORK);
}

StandInVm::~StandInVm() { ::munmap(memory_, size_.count()); }

std::span<std::byte> StandInVm::page(std::uint64_t frame) {
  return {memory_ + frame * kPageSize, kPageSize};
}

void StandInVm::touch(std::uint64_t first, std::uint64_t count) {
  std::memset(memory_ + first * kPageSize, 0, count * kPageSize);
}

Bytes StandInVm::footprint() const {
  struct stat info {};
  ::fstat(memfd_.get(), &info);
  return Bytes(static_cast<std::uint64_t>(info.st_blocks) * 512);
}

// ----------------------------------------------------------------------------------- ScriptedGuest

ScriptedGuest::ScriptedGuest(std::string socket)
    : session([id = static_cast<wire::SessionId>(::getpid()) << 32]() mutable { return ++id; }),
      path_(std::move(socket)),
      listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  hello.boot_id = {1, 2, 3};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 8) != 0) {
    throw std::system_error(errno, std::generic_category(), path_);
  }
}

ScriptedGuest::~ScriptedGuest() { ::unlink(path_.c_str()); }

bool ScriptedGuest::accept(std::chrono::milliseconds patience) {
  if (!readable(listener_.get(), patience)) {
    return false;
  }
  connection_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  session.reset();
  decoder_.restart();
  unread_.clear();
  return connection_.valid();
}

bool ScriptedGuest::connect() { return accept() && shake_hands(); }

bool ScriptedGuest::shake_hands() {
  send(session.hello(), hello);
  const auto until = std::chrono::steady_clock::now() + 5s;
  while (!session.is_established() && std::chrono::steady_clock::now() < until) {
    (void)receive(100ms);
  }
  return session.is_established();
}

void ScriptedGuest::send(const wire::Message& message) { send(session.next_header(), message); }

void ScriptedGuest::send(wire::Header header, const wire::Message& message) {
  std::vector<std::byte> bytes;
  wire::encode(header, message, bytes);
  send_bytes(bytes);
}

void ScriptedGuest::send_bytes(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) {
      return;  // the daemon hung up: for the test to notice
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

std::optional<wire::Frame> ScriptedGuest::receive(std::chrono::milliseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  while (true) {
    const std::size_t taken = decoder_.feed(unread_);
    unread_.erase(unread_.begin(), unread_.begin() + static_cast<std::ptrdiff_t>(taken));
    if (auto next = decoder_.next()) {
      auto* frame = std::get_if<wire::Frame>(&*next);
      if (frame == nullptr) {
        return std::nullopt;
      }
      const auto verdict = session.receive(frame->header);
      if (verdict == Session::Verdict::reply_hello ||
          (verdict == Session::Verdict::established && session.must_reply())) {
        send(session.hello(), hello);
      }
      if (verdict == Session::Verdict::deliver) {
        return std::move(*frame);
      }
      if (verdict == Session::Verdict::established) {
        return std::nullopt;
      }
      continue;
    }
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left <= 0ms || !readable(connection_.get(), left)) {
      return std::nullopt;
    }
    std::vector<std::byte> chunk(65536);
    const ssize_t n = ::recv(connection_.get(), chunk.data(), chunk.size(), 0);
    if (n <= 0) {
      return std::nullopt;
    }
    unread_.insert(unread_.end(), chunk.begin(), chunk.begin() + n);
  }
}

bool ScriptedGuest::closed_by_host(std::chrono::milliseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  std::vector<std::byte> chunk(65536);
  while (std::chrono::steady_clock::now() < until) {
    if (readable(connection_.get(), 50ms) &&
        ::recv(connection_.get(), chunk.data(), chunk.size(), 0) <= 0) {
      return true;
    }
  }
  return false;
}

// -------------------------------------------------------------------------------------- DaemonTest

DaemonTest::DaemonTest() {
  char name[] = "/tmp/fileballoon-daemon.XXXXXX";
  folder_ = ::mkdtemp(name);
}

DaemonTest::~DaemonTest() {
  if (HasFailure()) {
    std::fprintf(stderr, "--- fileballoond's log ---\n%s", log().c_str());
  }
  daemon_.end(SIGKILL);
  std::filesystem::remove_all(folder_);
}

std::string DaemonTest::log() const { return slurp(folder_ + "/log"); }

void DaemonTest::start(const std::string& config) {
  std::ofstream(path("config.toml"))
      << "socket = \"" << path("control.sock") << "\"\nstate_dir = \"" << path("state") << "\"\n"
      << config;
  const std::string config_file = path("config.toml");
  const std::string log_file = path("log");
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    die_with_parent(parent);
    const int log_fd = ::open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(log_fd, 2);
    ::execl(FILEBALLOOND, FILEBALLOOND, "--config", config_file.c_str(), nullptr);
    ::_exit(127);
  }
  daemon_ = Child(pid);
  ASSERT_TRUE(eventually([&] {
    auto client = JsonLineClient::connect(path("control.sock"));
    return client && client->call("list");
  })) << log();
}

Output DaemonTest::run(std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);
  const std::string out = path("out");
  const std::string error = path("err");
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    die_with_parent(parent);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(error.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    ::alarm(15);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), slurp(out),
          slurp(error)};
}

Output DaemonTest::run_daemon(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), FILEBALLOOND);
  return run(std::move(arguments));
}

Output DaemonTest::ctl(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {FILEBALLOONCTL, "--socket", path("control.sock")});
  return run(std::move(arguments));
}

boost::json::value DaemonTest::call(std::string_view method, boost::json::object params) {
  auto client = JsonLineClient::connect(path("control.sock"));
  if (!client) {
    ADD_FAILURE() << client.error().message;
    return {};
  }
  auto result = client->call(method, std::move(params));
  if (!result) {
    ADD_FAILURE() << method << ": " << result.error().message;
    return {};
  }
  return *result;
}

void DaemonTest::attach(const std::string& name, const StandInVm& vm, ScriptedGuest& guest) {
  const Output done =
      ctl({"attach", name, "--pid", std::to_string(vm.pid()), "--channel", guest.socket()});
  ASSERT_EQ(done.status, 0) << done.error;
  ASSERT_TRUE(guest.connect());
}

boost::json::object DaemonTest::stats(const std::string& name) {
  const boost::json::value value = call("stats", {{"name", name}});
  return value.is_object() ? value.get_object() : boost::json::object();
}

std::uint64_t DaemonTest::counter(const std::string& name, std::string_view which) {
  return stats(name).at("counters").as_object().at(which).to_number<std::uint64_t>();
}

bool DaemonTest::has_event(std::string_view kind, std::string_view vm) {
  return last_event(kind, vm).has_value();
}

std::string DaemonTest::event(std::string_view kind) { return last_event(kind, "").value_or(""); }

std::optional<std::string> DaemonTest::last_event(std::string_view kind, std::string_view vm) {
  std::optional<std::string> text;
  const boost::json::value events = call("events");
  for (const boost::json::value& item : events.at("recent").as_array()) {
    const boost::json::object& event = item.as_object();
    if (event.at("event").as_string() == kind &&
        (vm.empty() || (event.contains("vm") && event.at("vm").as_string() == vm))) {
      text = std::string(event.at("text").as_string());
    }
  }
  return text;
}

}  // namespace fileballoon::host
