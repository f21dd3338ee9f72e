// Messages of the agent: to the terminal while it runs in the foreground, to syslog (or the kernel
// log, where no syslog daemon listens) as a daemon. Set up once before any thread or child starts;
// after that every function is thread-safe. Nothing on the page path logs.
#pragma once

#include <string_view>

namespace fileballoon::guest {

enum class LogSink { terminal, system };

/// Chooses where messages go from now on.
void log_to(LogSink sink);
void log_info(std::string_view message);
void log_warning(std::string_view message);
void log_error(std::string_view message);

}  // namespace fileballoon::guest
