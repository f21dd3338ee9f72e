#include "host/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "host/actor_registry.h"

namespace fileballoon::host {
namespace {

constexpr std::array<std::string_view, 6> kLogLevels = {"trace",   "debug", "info",
                                                        "warning", "error", "off"};

/// One table of the file. Every key is asked for once; what nobody asked for is unknown. The first
/// error wins.
class Section {
 public:
  Section(const toml::table& table, std::string file, std::string name)
      : table_(table), file_(std::move(file)), name_(std::move(name)) {}

  template <class T>
  void read(const char* key, const char* expected, T& out) {
    known_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) {
      return;
    }
    if (const auto value = node->value_exact<T>()) {
      out = *value;
    } else {
      fail(*node, fmt::format("'{}' must be {}", key, expected));
    }
  }
  /// Reads a string and has `check` turn it into what is wanted.
  template <class Check>
  void read_checked(const char* key, Check&& check) {
    std::string text;
    read(key, "a string", text);
    const toml::node* node = table_.get(key);
    if (node == nullptr || error_) {
      return;
    }
    if (const auto checked = check(text); !checked) {
      fail(*node, fmt::format("'{}': {}", key, checked.error().message));
    }
  }
  void read_integer(const char* key, std::int64_t least, std::int64_t most, std::int64_t& out) {
    read(key, "an integer", out);
    const toml::node* node = table_.get(key);
    if (node != nullptr && !error_ && (out < least || out > most)) {
      fail(*node, fmt::format("'{}' is {}; it must be from {} to {}", key, out, least, most));
    }
  }
  [[nodiscard]] const toml::node* get(const char* key) {
    known_.insert(key);
    return table_.get(key);
  }
  void fail(const toml::node& node, std::string text) {
    if (!error_) {
      error_ = Error{fmt::format("{}:{}: {}", file_, node.source().begin.line, std::move(text))};
    }
  }
  /// The first error, unknown keys included.
  [[nodiscard]] std::optional<Error> finish() {
    for (const auto& [key, node] : table_) {
      if (!known_.contains(key.str())) {
        std::string known;
        for (const std::string& k : known_) {
          known += (known.empty() ? "" : ", ") + k;
        }
        fail(node, fmt::format("unknown key '{}'{}; known are {}", key.str(),
                               name_.empty() ? "" : " in " + name_, known));
      }
    }
    return error_;
  }

 private:
  const toml::table& table_;
  std::string file_;
  std::string name_;
  std::set<std::string, std::less<>> known_;
  std::optional<Error> error_;
};

Result<void> absolute(const std::string& path) {
  if (!path.starts_with('/')) {
    return Error{fmt::format("'{}' is no absolute path", path)};
  }
  return {};
}

/// A path into `out`.
auto path_into(std::string& out) {
  return [&out](const std::string& text) -> Result<void> {
    out = text;
    return absolute(text);
  };
}

auto refault_into(RefaultMode& out) {
  return [&out](const std::string& text) -> Result<void> {
    const Result<RefaultMode> mode = parse_refault_mode(text);
    if (!mode) {
      return mode.error();
    }
    out = *mode;
    return {};
  };
}

/// A size as typed; checked now, meant later when the RAM is known.
auto size_into(std::string& out) {
  return [&out](const std::string& text) -> Result<void> {
    const Result<Bytes> size = parse_size(text, Bytes::gib(1));
    if (!size) {
      return size.error();
    }
    out = text;
    return {};
  };
}

/// A size that is a number of bytes, whatever a VM's RAM.
auto bytes_into(Bytes& out) {
  return [&out](const std::string& text) -> Result<void> {
    const Result<Bytes> size = parse_size(text);
    if (!size) {
      return size.error();
    }
    out = *size;
    return {};
  };
}

/// [paging], and `paging` of a VM.
std::optional<Error> parse_store(const toml::node& node, const std::string& file,
                                 const std::string& name, StoreSettings& out,
                                 std::string* budget_dir) {
  if (!node.is_table()) {
    return Error{fmt::format("{}:{}: 'paging' must be a table", file, node.source().begin.line)};
  }
  Section section(*node.as_table(), file, name);
  section.read_checked("memory", bytes_into(out.memory));
  section.read_checked("compression", [&](const std::string& text) -> Result<void> {
    const Result<Compression> compression = parse_compression(text);
    if (!compression) {
      return compression.error();
    }
    out.compression = *compression;
    return {};
  });
  section.read_checked("path", path_into(out.path));
  section.read_checked("file_limit", bytes_into(out.file_limit));
  section.read_checked("daily_writes", bytes_into(out.daily_writes));
  if (budget_dir != nullptr) {
    section.read_checked("budget_dir", path_into(*budget_dir));
  }
  if (const Result<void> good = check_store(out); !good) {
    section.fail(node, good.error().message);
  }
  return section.finish();
}

std::optional<Error> parse_arbiter(const toml::table& table, const std::string& file,
                                   ArbiterSettings& out) {
  Section section(table, file, "[arbiter]");
  section.read_checked("mode", [&](const std::string& text) -> Result<void> {
    const Result<ArbiterMode> mode = parse_arbiter_mode(text);
    if (!mode) {
      return mode.error();
    }
    out.mode = *mode;
    return {};
  });
  Bytes limit;
  section.read_checked("limit", bytes_into(limit));
  if (table.contains("limit")) {
    out.limit = limit;
  }
  double tax = out.arbiter.idle_tax;
  section.read("idle_tax", "a number from 0.0 to 1.0", tax);
  if (const auto config = make_arbiter_config({tax}); !config) {
    section.fail(*table.get("idle_tax"), config.error().message);
  }
  out.arbiter.idle_tax = tax;
  std::int64_t interval = out.interval.count();
  section.read_integer("interval_ms", 100, 60'000, interval);
  out.interval = std::chrono::milliseconds(interval);
  section.read_checked("lock", path_into(out.lock));
  return section.finish();
}

/// `policy`, `timeout`, `actor` and `weight` of a VM.
void read_policy(Section& section, MemorySettings& out) {
  section.read_checked("policy", [&](const std::string& text) -> Result<void> {
    const Result<MemoryPolicy> policy = parse_policy(text);
    if (!policy) {
      return policy.error();
    }
    out.policy = *policy;
    return {};
  });
  section.read_checked("timeout", [&](const std::string& text) -> Result<void> {
    const auto timeout = parse_timeout(text);
    if (!timeout) {
      return timeout.error();
    }
    out.timeout = *timeout;
    return {};
  });
  section.read_checked("actor", [&](const std::string& text) -> Result<void> {
    const Result<ActorName> actor = parse_actor(text, actor_names());
    if (!actor) {
      return actor.error();
    }
    out.actor = *actor;
    const auto effective = effective_policy(out.policy, out.actor);
    return effective ? Result<void>() : Result<void>(effective.error());
  });
  std::int64_t weight = out.weight;
  section.read_integer("weight", 0, kMaxWeight, weight);
  out.weight = static_cast<std::uint32_t>(weight);
}

Result<ConfiguredVm> parse_vm(const toml::table& table, const std::string& file,
                              const Config& defaults) {
  Section section(table, file, "[[vm]]");
  ConfiguredVm vm;
  vm.spec.refault = defaults.refault;
  section.read_checked("name", [&](const std::string& text) -> Result<void> {
    vm.spec.name = text;
    return check_vm_name(text);
  });
  std::int64_t pid = 0;
  section.read_integer("pid", 1, 1 << 22, pid);  // PID_MAX_LIMIT, proc(5)
  vm.spec.pid = static_cast<pid_t>(pid);
  section.read_checked("pid_file", path_into(vm.pid_file));
  section.read_checked("channel", path_into(vm.spec.channel));
  section.read_checked("qmp", path_into(vm.spec.qmp));
  section.read_checked("refault", refault_into(vm.spec.refault));
  std::int64_t band = 0;
  section.read_integer("band", 0, kMaxBand, band);
  vm.spec.band = static_cast<int>(band);
  section.read("back_frames", "true or false", vm.spec.back_frames);
  section.read_checked("footprint", size_into(vm.footprint));
  section.read_checked("floor", size_into(vm.floor));
  section.read_checked("minimum", size_into(vm.minimum));
  read_policy(section, vm.memory);
  section.read_checked("cache", [&](const std::string& text) -> Result<void> {
    const Result<CacheMode> mode = parse_cache_mode(text);
    if (!mode) {
      return mode.error();
    }
    vm.memory.cache = *mode;
    return {};
  });
  if (const toml::node* paging = section.get("paging")) {
    if (auto error = parse_store(*paging, file, "paging of [[vm]]", vm.memory.store, nullptr)) {
      return *error;
    }
  }
  if (auto error = section.finish()) {
    return *error;
  }
  if (vm.spec.name.empty()) {
    section.fail(table, "a [[vm]] needs a 'name'");
  } else if ((vm.spec.pid == 0) == vm.pid_file.empty()) {
    section.fail(table, fmt::format("VM '{}' needs one of 'pid' and 'pid_file'", vm.spec.name));
  } else if (vm.spec.channel.empty()) {
    section.fail(table, fmt::format("VM '{}' needs a 'channel'", vm.spec.name));
  }
  if (auto error = section.finish()) {
    return *error;
  }
  return vm;
}

std::optional<Error> parse_limits(const toml::table& table, const std::string& file, Config& out) {
  Section section(table, file, "[limits]");
  std::int64_t timeout = out.write_timeout.count();
  section.read_integer("write_timeout_ms", 100, 3'600'000, timeout);
  out.write_timeout = std::chrono::milliseconds(timeout);
  auto vms = static_cast<std::int64_t>(out.max_vms);
  section.read_integer("max_vms", 1, 100'000, vms);
  out.max_vms = static_cast<std::size_t>(vms);
  auto clients = static_cast<std::int64_t>(out.max_clients);
  section.read_integer("max_clients", 1, 10'000, clients);
  out.max_clients = static_cast<std::size_t>(clients);
  return section.finish();
}

}  // namespace

bool is_log_level(std::string_view level) {
  return std::find(kLogLevels.begin(), kLogLevels.end(), level) != kLogLevels.end();
}

Result<Config> parse_config(std::string_view text, const std::string& file) {
  toml::table table;
  try {
    table = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    return Error{fmt::format("{}:{}: {}", file, error.source().begin.line, error.description())};
  }
  Section section(table, file, "");
  Config config;
  section.read_checked("socket", path_into(config.socket));
  section.read_checked("socket_mode", [&](const std::string& mode) -> Result<void> {
    std::uint32_t value = 0;
    const auto [end, error] = std::from_chars(mode.data(), mode.data() + mode.size(), value, 8);
    if (error != std::errc{} || end != mode.data() + mode.size() || value > 0777) {
      return Error{fmt::format("'{}' is no file mode; write octal digits as in \"0660\"", mode)};
    }
    config.socket_mode = value;
    return {};
  });
  section.read("socket_group", "a string", config.socket_group);
  section.read_checked("state_dir", path_into(config.state_dir));
  section.read_checked("log_level", [&](const std::string& level) -> Result<void> {
    config.log_level = level;
    if (!is_log_level(level)) {
      return Error{fmt::format("unknown level '{}'; write {}", level, fmt::join(kLogLevels, ", "))};
    }
    return {};
  });
  section.read_checked("refault", refault_into(config.refault));
  if (const toml::node* limits = section.get("limits")) {
    if (!limits->is_table()) {
      section.fail(*limits, "'limits' must be a table: [limits]");
    } else if (auto error = parse_limits(*limits->as_table(), file, config)) {
      return *error;
    }
  }
  if (const toml::node* paging = section.get("paging")) {
    if (auto error = parse_store(*paging, file, "[paging]", config.store, &config.budget_dir)) {
      return *error;
    }
  }
  if (const toml::node* arbiter = section.get("arbiter")) {
    if (!arbiter->is_table()) {
      section.fail(*arbiter, "'arbiter' must be a table: [arbiter]");
    } else if (auto error = parse_arbiter(*arbiter->as_table(), file, config.arbiter)) {
      return *error;
    }
  }
  const toml::node* vms = section.get("vm");
  if (vms != nullptr && !vms->is_array_of_tables()) {
    section.fail(*vms, "'vm' must be tables: [[vm]]");
  }
  if (auto error = section.finish()) {
    return *error;
  }
  if (vms != nullptr) {
    std::set<std::string> names;
    for (const toml::node& node : *vms->as_array()) {
      Result<ConfiguredVm> vm = parse_vm(*node.as_table(), file, config);
      if (!vm) {
        return vm.error();
      }
      if (!names.insert(vm->spec.name).second) {
        return Error{fmt::format("{}:{}: there are two VMs named '{}'", file,
                                 node.source().begin.line, vm->spec.name)};
      }
      config.vms.push_back(std::move(*vm));
    }
  }
  return config;
}

Result<Config> read_config(const std::string& file) {
  std::ifstream in(file);
  if (!in) {
    return Error{fmt::format("cannot read the configuration {}: {}", file, std::strerror(errno))};
  }
  std::ostringstream text;
  text << in.rdbuf();
  return parse_config(text.str(), file);
}

}  // namespace fileballoon::host
