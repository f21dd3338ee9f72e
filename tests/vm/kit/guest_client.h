// GuestClient: drives the init of a test guest over its test port. Requests may overlap: start()
// sends one, take() and wait() pick up its answer while others are under way. What the guest
// refuses or what comes too late is a std::runtime_error that names the verb. One thread at a time.
#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "fileballoon/bytes.h"
#include "host/json_line_client.h"

namespace fileballoon::vmkit {

class GuestClient {
 public:
  using Object = boost::json::object;
  using Timeout = std::chrono::milliseconds;
  static constexpr Timeout kDefaultTimeout = std::chrono::seconds(60);
  struct Ticket {
    std::int64_t id = 0;
    std::string verb;
  };

  explicit GuestClient(host::JsonLineClient port) : port_(std::move(port)) {}

  /// Waits for the guest's next "ready" (one per boot) at most `timeout`; false if it did not come.
  [[nodiscard]] bool wait_ready(Timeout timeout);
  /// boot_id of the boot that said "ready" last.
  [[nodiscard]] const std::string& boot_id() const { return boot_id_; }
  /// Seconds from the guest's boot to "ready", as the guest measured it.
  [[nodiscard]] double boot_seconds() const { return boot_seconds_; }

  [[nodiscard]] Ticket start(std::string_view verb, Object arguments = {});
  /// The answer if it has come.
  [[nodiscard]] std::optional<Object> take(const Ticket& ticket);
  Object wait(const Ticket& ticket, Timeout timeout = kDefaultTimeout);
  Object call(std::string_view verb, Object arguments = {}, Timeout timeout = kDefaultTimeout);

  // The verbs that everybody uses, by name.

  /// Fills `size` with the pattern in a process called `name`; seconds it took. It holds the memory
  /// until drop(name).
  double fill(const std::string& name, Bytes size, Timeout timeout = std::chrono::seconds(120));
  /// Verifies the memory of `name`: wrong pages.
  std::uint64_t check(const std::string& name, Timeout timeout = std::chrono::seconds(120));
  void drop(const std::string& name);
  /// Writes to `size` bytes of memory and frees it, so that the host has memory behind it.
  void touch_and_free(Bytes size, Timeout timeout = std::chrono::seconds(120));
  /// Output of a shell command; throws where its exit status is not 0.
  std::string shell(const std::string& command, Timeout timeout = kDefaultTimeout);
  [[nodiscard]] std::string get_file(const std::string& path);
  void put_file(const std::string& path, const std::string& text);
  /// One number of /proc/vmstat; 0 where the kernel does not have it.
  [[nodiscard]] std::uint64_t vmstat(const std::string& name);
  /// One number of /proc/meminfo.
  [[nodiscard]] Bytes meminfo(const std::string& name);

 private:
  /// Reads at most one line within `timeout`; false if nothing came.
  bool pump(Timeout timeout);

  host::JsonLineClient port_;
  std::map<std::int64_t, Object> answers_;
  std::int64_t last_id_ = 0;
  bool ready_ = false;
  std::string boot_id_;
  double boot_seconds_ = 0;
};

}  // namespace fileballoon::vmkit
