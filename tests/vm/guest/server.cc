#include "tests/vm/guest/server.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <vector>

#include "tests/vm/guest/job.h"
#include "tests/vm/guest/liar.h"
#include "tests/vm/guest/loops.h"
#include "tests/vm/guest/memory_work.h"
#include "tests/vm/guest/staircase.h"
#include "tests/vm/guest/sysinfo.h"
#include "tests/vm/guest/vsock_relay.h"

namespace fileballoon::guest {
namespace json = boost::json;
namespace {

std::string text_of(const json::object& request, std::string_view key) {
  return std::string(request.at(key).as_string());
}

std::uint64_t number_of(const json::object& request, std::string_view key) {
  return request.at(key).to_number<std::uint64_t>();
}

std::uint64_t number_or(const json::object& request, std::string_view key, std::uint64_t other) {
  return request.contains(key) ? number_of(request, key) : other;
}

void unblock_signals() {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// Output and exit status of a shell command; "cd" and pipes work.
void run_command(TaskPort& port, const std::string& command) {
  unblock_signals();
  const std::string wrapped = "( " + command + "\n) 2>&1";
  FILE* pipe = popen(wrapped.c_str(), "re");
  if (pipe == nullptr) throw std::system_error(errno, std::generic_category(), "popen");
  std::string output;
  char chunk[4096];
  std::size_t n = 0;
  while ((n = fread(chunk, 1, sizeof chunk, pipe)) > 0) {
    if (output.size() < (std::size_t{256} << 10)) output.append(chunk, n);
  }
  const int status = pclose(pipe);
  port.reply({{"status", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)},
              {"output", output}});
}

}  // namespace

Server::Server(int port) : port_(port) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals_ < 0) throw std::system_error(errno, std::generic_category(), "signalfd");
}

void Server::send(const Object& message) {
  const std::string line = json::serialize(message) + "\n";
  std::size_t done = 0;
  while (done < line.size()) {
    const ssize_t n = write(port_, line.data() + done, line.size() - done);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (errno != EINTR && errno != EAGAIN) {
      return;  // the host's end is gone; so is whoever would have read this
    }
  }
}

void Server::answer(std::int64_t id, Object result) {
  send({{"id", id}, {"result", std::move(result)}});
}

void Server::answer_error(std::int64_t id, const std::string& why) {
  send({{"id", id}, {"error", why}});
}

void Server::run() {
  std::string boot_id = read_text("/proc/sys/kernel/random/boot_id");
  boot_id.erase(boot_id.find_last_not_of('\n') + 1);
  send({{"event", "ready"}, {"boot_id", boot_id}, {"uptime_s", cpu().at("uptime_s")}});
  while (true) {
    std::vector<pollfd> polled{{port_, POLLIN, 0}, {signals_, POLLIN, 0}};
    std::vector<std::string> names;
    for (const auto& [name, job] : jobs_) {
      polled.push_back({job.task->fd(), POLLIN, 0});
      names.push_back(name);
    }
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if ((polled[1].revents & POLLIN) != 0) reap();
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (polled[i + 2].revents != 0) poll_task(names[i]);
    }
    if ((polled[0].revents & POLLIN) != 0) {
      char chunk[4096];
      const ssize_t n = read(port_, chunk, sizeof chunk);
      if (n > 0) buffer_.append(chunk, static_cast<std::size_t>(n));
      for (auto end = buffer_.find('\n'); end != std::string::npos; end = buffer_.find('\n')) {
        const std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        handle_line(line);
      }
    } else if ((polled[0].revents & POLLHUP) != 0) {
      // Nobody on the host's end; POLLHUP would come back at once.
      const timespec pause{0, 100'000'000};
      nanosleep(&pause, nullptr);
    }
  }
}

void Server::handle_line(const std::string& line) {
  std::int64_t id = -1;
  try {
    const Object request = json::parse(line).as_object();
    id = request.at("id").to_number<std::int64_t>();
    handle(id, request);
  } catch (const std::exception& error) {
    answer_error(id, error.what());
  }
}

void Server::handle(std::int64_t id, const Object& request) {
  const std::string verb = text_of(request, "verb");
  if (!handle_query(id, verb, request) && !handle_task(id, verb, request)) {
    answer_error(id, "the guest knows no verb " + verb);
  }
}

bool Server::handle_query(std::int64_t id, const std::string& verb, const Object& request) {
  if (verb == "meminfo") {
    answer(id, meminfo_kib());
  } else if (verb == "numbers") {
    answer(id, {{"meminfo", meminfo_kib()}, {"vmstat", vmstat()}, {"cpu", cpu()}});
  } else if (verb == "cpu") {
    answer(id, cpu());
  } else if (verb == "processes") {
    answer(id, processes(text_of(request, "name")));
  } else if (verb == "get") {
    answer(id, {{"text", read_text(text_of(request, "path"))}});
  } else if (verb == "put") {
    write_text(text_of(request, "path"), text_of(request, "text"));
    answer(id, {});
  } else if (verb == "spawn") {
    spawn(id, request);
  } else if (verb == "ended") {
    const auto found = ended_.find(static_cast<pid_t>(number_of(request, "pid")));
    answer(id, found == ended_.end() ? Object{{"ended", false}}
                                     : Object{{"ended", true}, {"wait_status", found->second}});
  } else if (verb == "kill") {
    const auto pid = static_cast<pid_t>(number_of(request, "pid"));
    if (::kill(pid, static_cast<int>(number_of(request, "signal"))) != 0) {
      throw std::system_error(errno, std::generic_category(), "kill " + std::to_string(pid));
    }
    answer(id, {});
  } else if (verb == "drop") {
    jobs_.erase(text_of(request, "name"));
    answer(id, {});
  } else if (verb == "reboot") {
    answer(id, {});
    sync();
    reboot(RB_AUTOBOOT);
  } else if (verb == "poweroff") {
    sync();
    reboot(RB_POWER_OFF);
  } else {
    return false;
  }
  return true;
}

bool Server::handle_task(std::int64_t id, const std::string& verb, const Object& request) {
  const std::string name =
      request.contains("name") ? text_of(request, "name") : "task-" + std::to_string(next_name_++);
  if (verb == "fill") {
    const std::uint64_t size = number_of(request, "size");
    const std::uint64_t seed = number_or(request, "seed", 1);
    start_task(id, name, [=](TaskPort& port) { hold_memory(port, size, seed); });
  } else if (verb == "check") {
    const auto job = jobs_.find(name);
    if (job == jobs_.end()) throw std::runtime_error("nothing named " + name + " holds memory");
    if (job->second.request >= 0) throw std::runtime_error(name + " is busy");
    job->second.request = id;
    job->second.task->order({{"check", true}});
  } else if (verb == "touch") {
    const std::uint64_t size = number_of(request, "size");
    start_task(id, name, [=](TaskPort& port) { touch_and_free(port, size); });
  } else if (verb == "read") {
    const std::string path = text_of(request, "path");
    start_task(id, name, [=](TaskPort& port) { read_file(port, path); });
  } else if (verb == "run") {
    const std::string command = text_of(request, "command");
    start_task(id, name, [=](TaskPort& port) { run_command(port, command); });
  } else if (verb == "staircase") {
    const StaircaseFiles files{text_of(request, "hot"), text_of(request, "once")};
    const std::uint64_t largest = number_of(request, "largest");
    start_task(id, name, [=](TaskPort& port) { climb_staircase(port, files, largest); });
  } else if (verb == "step") {
    const auto job = jobs_.find(name);
    if (job == jobs_.end()) throw std::runtime_error("there is no staircase named " + name);
    if (job->second.request >= 0) throw std::runtime_error(name + " is busy");
    job->second.request = id;
    job->second.task->order(
        {{"size", number_of(request, "size")}, {"passes", number_of(request, "passes")}});
  } else if (verb == "job") {
    const JobShape shape{number_of(request, "size"), number_of(request, "hot"),
                         number_of(request, "rate"), number_of(request, "passes"),
                         number_or(request, "seed", 1)};
    start_task(id, name, [=](TaskPort& port) { run_job(port, shape); });
  } else if (verb == "loop") {
    const std::string over = text_of(request, "over");
    const std::uint64_t size = number_of(request, "size");
    start_task(id, name, [=](TaskPort& port) {
      if (over == "random pages") {
        loop_over_memory(port, size);
      } else if (over == "stream") {
        stream_over_memory(port, size);
      } else {
        loop_over_file(port, over, size);
      }
    });
  } else if (verb == "loop-for") {
    const auto job = jobs_.find(name);
    if (job == jobs_.end()) throw std::runtime_error("there is no loop named " + name);
    if (job->second.request >= 0) throw std::runtime_error(name + " is busy");
    job->second.request = id;
    job->second.task->order({{"seconds", request.at("seconds")}});
  } else if (verb == "switch") {
    const auto cpu = static_cast<unsigned>(number_of(request, "cpu"));
    const std::chrono::microseconds every(number_of(request, "every_us"));
    start_task(id, name, [=](TaskPort& port) { switch_address_spaces(port, cpu, every); });
  } else if (verb == "vsock-relay") {
    const auto port_number = static_cast<unsigned>(number_of(request, "port"));
    const std::string path = text_of(request, "path");
    start_task(id, name, [=](TaskPort& port) { relay_vsock(port, port_number, path); });
  } else if (verb == "report-live-data") {
    const std::string channel = text_of(request, "channel");
    const std::uint64_t pages = number_of(request, "pages");
    start_task(id, name, [=](TaskPort& port) { report_live_data(port, channel, pages); });
  } else if (verb == "report-while-writing") {
    const std::string channel = text_of(request, "channel");
    const std::uint64_t pages = number_of(request, "pages");
    const std::uint64_t rounds = number_of(request, "rounds");
    start_task(id, name,
               [=](TaskPort& port) { report_while_writing(port, channel, pages, rounds); });
  } else {
    return false;
  }
  return true;
}

void Server::start_task(std::int64_t id, const std::string& name, const Task::Body& body) {
  if (jobs_.contains(name))
    throw std::runtime_error("there is something named " + name + " already");
  auto task = std::make_unique<Task>([&](TaskPort& port) {
    unblock_signals();
    body(port);
  });
  jobs_.emplace(name, Job{std::move(task), id});
}

void Server::poll_task(const std::string& name) {
  const auto found = jobs_.find(name);
  if (found == jobs_.end()) return;
  Job& job = found->second;
  if (const auto reply = job.task->read_reply()) {
    const std::int64_t request = std::exchange(job.request, -1);
    if (const auto* error = reply->if_contains("error")) {
      answer_error(request, std::string(error->as_string()));
    } else {
      answer(request, reply->at("result").as_object());
    }
  }
  if (job.task->closed()) {
    const std::string end = job.task->end();
    if (job.request >= 0) answer_error(job.request, "the work " + end);
    jobs_.erase(found);
  }
}

// A program in the background; its output goes to `log` (default: the console).
void Server::spawn(std::int64_t id, const Object& request) {
  std::vector<std::string> words;
  for (const auto& word : request.at("argv").as_array()) words.emplace_back(word.as_string());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string log = request.contains("log") ? text_of(request, "log") : "/dev/console";
  std::vector<unsigned long> dropped;
  if (const auto* without = request.if_contains("without_capabilities")) {
    for (const auto& one : without->as_array()) dropped.push_back(one.to_number<unsigned long>());
  }
  const auto uid = static_cast<uid_t>(number_or(request, "uid", 0));
  const pid_t pid = fork();
  if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid == 0) {
    unblock_signals();
    setsid();
    // Not in the bounding set, a capability is not root's after the exec (capabilities(7)).
    for (const unsigned long capability : dropped) prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    if (uid != 0 && (setgroups(0, nullptr) != 0 || setresuid(uid, uid, uid) != 0)) _exit(126);
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const int in = open("/dev/null", O_RDONLY);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    execv(argv[0], argv.data());
    _exit(127);
  }
  answer(id, {{"pid", pid}});
}

// Children that are tasks are reaped by their owner, the others here.
void Server::reap() {
  signalfd_siginfo info;
  while (read(signals_, &info, sizeof info) > 0) {
  }
  // A task's process is only ever waited for by its pid, after its pipe has closed; everything
  // that is not a task was spawned, or left to us by a parent that died.
  bool again = true;
  while (again) {
    again = false;
    siginfo_t child{};
    if (waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) != 0 || child.si_pid == 0) return;
    for (const auto& [name, job] : jobs_) {
      if (job.task->pid() == child.si_pid) {
        // Its pipe closes at the same time; answer it now, or it would hide the others.
        const std::string copy = name;
        while (jobs_.contains(copy)) poll_task(copy);
        again = true;
        break;
      }
    }
    if (!again) {
      int status = 0;
      if (waitpid(child.si_pid, &status, 0) == child.si_pid) ended_[child.si_pid] = status;
      again = true;
    }
  }
}

}  // namespace fileballoon::guest
