#include "guest-fs/log.h"

// The only file that sees spdlog: header-only here, so that the static agent needs no library and
// carries the templates once.
#define SPDLOG_HEADER_ONLY
#define FMT_HEADER_ONLY
#include <fcntl.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <mutex>
#include <string>

#include "fileballoon/unique_fd.h"

namespace fileballoon::guest {
namespace {

/// Writes to /dev/kmsg, one record a line, priority first (Documentation/ABI/testing/dev-kmsg).
class KernelLogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  KernelLogSink() : fd_(::open("/dev/kmsg", O_WRONLY | O_CLOEXEC)) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    // Facility daemon (3), so that the kernel does not take it for one of its own.
    const int severity = message.level >= spdlog::level::err    ? 3
                         : message.level == spdlog::level::warn ? 4
                                                                : 6;
    std::string line = "<" + std::to_string((3 << 3) | severity) + ">balloonfs: ";
    line.append(message.payload.data(), message.payload.size());
    line += '\n';
    [[maybe_unused]] const ssize_t written = ::write(fd_.get(), line.data(), line.size());
  }
  void flush_() override {}

 private:
  UniqueFd fd_;
};

bool syslog_daemon_listens() {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, "/dev/log");
  return fd.valid() &&
         ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    sink->set_pattern("balloonfs: %^%l%$: %v");
    return spdlog::logger("balloonfs", std::move(sink));
  }();
  return instance;
}

}  // namespace

void log_to(LogSink sink) {
  spdlog::sink_ptr chosen;
  if (sink == LogSink::terminal) {
    chosen = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    chosen->set_pattern("balloonfs: %l: %v");
  } else if (syslog_daemon_listens()) {
    chosen =
        std::make_shared<spdlog::sinks::syslog_sink_mt>("balloonfs", LOG_PID, LOG_DAEMON, false);
  } else {
    chosen = std::make_shared<KernelLogSink>();
  }
  logger().sinks() = {std::move(chosen)};
}

void log_info(std::string_view message) { logger().info("{}", message); }
void log_warning(std::string_view message) { logger().warn("{}", message); }
void log_error(std::string_view message) { logger().error("{}", message); }

}  // namespace fileballoon::guest
