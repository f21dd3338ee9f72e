// fileballoon-faultd: keeps the userfaultfd of one VM and answers its faults, whatever becomes of
// fileballoond, which starts it (docs/userfaultfd.md, "The daemon's death").
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <syslog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "uffd/faultd/keeper.h"
#include "uffd/pager/keeper_guard.h"

namespace {

using namespace fileballoon;
using faultd::Keeper;

// The guest stands still while this process is swapped out, killed for memory, or behind others in
// the queue for a CPU.
void harden() {
  // ONFAULT: what is used stays; thread stacks are not filled up for it.
  (void)::mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
  std::ofstream("/proc/self/oom_score_adj") << -1000;
  (void)::setpriority(PRIO_PROCESS, 0, -10);
}

UniqueFd catch_signals() {
  // Hang-ups and interrupts are for the daemon's terminal, not for us.
  ::signal(SIGHUP, SIG_IGN);
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t stop;
  ::sigemptyset(&stop);
  ::sigaddset(&stop, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  return UniqueFd(::signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK));
}

// Forks into the background. The parent waits for the child's verdict, prints it where it is an
// error, and exits with it; the child gets the descriptor to report to.
UniqueFd go_to_background() {
  int verdict[2];
  if (::pipe2(verdict, O_CLOEXEC) != 0) {
    std::cerr << "fileballoon-faultd: pipe2: " << std::strerror(errno) << '\n';
    std::exit(1);
  }
  const pid_t child = ::fork();
  if (child < 0) {
    std::cerr << "fileballoon-faultd: fork: " << std::strerror(errno) << '\n';
    std::exit(1);
  }
  if (child > 0) {
    ::close(verdict[1]);
    std::string text;
    char buffer[512];
    for (ssize_t got = 0; (got = ::read(verdict[0], buffer, sizeof buffer)) > 0;) {
      text.append(buffer, static_cast<std::size_t>(got));
    }
    if (text == "ok\n") {
      std::_Exit(0);
    }
    std::cerr << (text.empty() ? "fileballoon-faultd ended at once\n" : text);
    std::exit(1);
  }
  ::close(verdict[0]);
  ::setsid();  // out of the daemon's session and process group
  (void)!::chdir("/");
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    ::dup2(null.get(), fd);
  }
  return UniqueFd(verdict[1]);
}

// "DEVICE:INODE"
std::string parse_object(const std::string& text, std::vector<InodeId>& out) {
  std::istringstream in(text);
  InodeId id;
  char colon = 0;
  if (!(in >> id.device >> colon >> id.inode) || colon != ':' || !in.eof()) {
    return "'" + text + "' names no memory object; write DEVICE:INODE in decimal";
  }
  out.push_back(id);
  return {};
}

int run(pid_t pid, const std::string& socket, const Keeper::Options& options, bool background) {
  UniqueFd verdict = background ? go_to_background() : UniqueFd();
  const auto fail = [&](const std::string& why) {
    const std::string line = "fileballoon-faultd: " + why + "\n";
    (void)!::write(background ? verdict.get() : STDERR_FILENO, line.data(), line.size());
    return 1;
  };
  // Both before any thread starts, which inherits the mask and the niceness.
  const UniqueFd stop = catch_signals();
  harden();
  auto keeper = Keeper::attach(pid, options);
  if (keeper.has_error()) {
    return fail(keeper.error().message);
  }
  if (const auto listening = (*keeper)->listen(socket); listening.has_error()) {
    return fail(listening.error().message);
  }
  if (background) {
    (void)!::write(verdict.get(), "ok\n", 3);
    verdict.reset();
  }
  ::openlog("fileballoon-faultd", LOG_PID | (background ? 0 : LOG_PERROR), LOG_DAEMON);
  ::syslog(LOG_INFO, "answers the faults of %s", (*keeper)->ram().process().label().c_str());
  const std::string reason = (*keeper)->serve(stop.get());
  ::syslog(LOG_INFO, "ends: %s", reason.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  pid_t pid = 0;
  std::string socket;
  Keeper::Options options;
  bool background = false;
  const std::map<std::string, Resolver> resolvers = {{"zeropage", Resolver::zeropage},
                                                     {"fallocate", Resolver::fallocate},
                                                     {"continue", Resolver::continue_}};
  CLI::App app("Keeps the userfaultfd of one VM and answers its faults");
  app.add_option("--pid", pid, "process id of the VMM")->required();
  bool guard = false;
  auto* orders = app.add_option("--socket", socket, "UNIX socket to take orders on");
  app.add_flag("--guard", guard,
               "only hold what the starting keeper hands over, and stop the VM if it dies")
      ->group("")
      ->excludes(orders);
  app.add_option("--resolver", options.resolver, "zeropage (default), fallocate or continue")
      ->transform(CLI::CheckedTransformer(resolvers));
  const std::map<std::string, RefaultMode> modes = {{"kernel", RefaultMode::kernel},
                                                    {"engine", RefaultMode::engine}};
  app.add_option("--refaults", options.refaults,
                 "who answers refaults: engine (default), or kernel: then only writes to frames "
                 "that are being discarded come here")
      ->transform(CLI::CheckedTransformer(modes));
  app.add_option("--shards", options.shards, "userfaultfds to divide the RAM among, default 2")
      ->check(CLI::Range(1, 16));
  std::vector<std::string> objects;
  app.add_option(
      "--object", objects,
      "DEVICE:INODE of a memory object that is RAM of the guest, as stat(1) shows them in "
      "decimal; may be repeated (default: every shared object of at least 16 MiB)");
  app.add_flag("--daemonize", background, "attach, report, and go on in the background");
  app.set_version_flag("--version", "fileballoon-faultd " FILEBALLOON_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (guard) {
    return faultd::run_guard(pid);
  }
  if (socket.empty()) {
    std::cerr << "fileballoon-faultd: --socket is required\n";
    return 2;
  }
  options.socket = socket;
  for (const std::string& object : objects) {
    if (const std::string problem = parse_object(object, options.objects); !problem.empty()) {
      std::cerr << "fileballoon-faultd: " << problem << '\n';
      return 2;
    }
  }
  try {
    return run(pid, socket, options, background);
  } catch (const std::exception& error) {
    std::cerr << "fileballoon-faultd: " << error.what() << '\n';
    return 1;
  }
}
