// ArbiterLoop: the arbiter (fileballoon/arbiter.h) at work on this host. Once a second, and at once
// when a guest deflates fast, it reads the host's memory and what is known of each VM, has the
// arbiter divide, and hands each VM its share, by the same path as mem-set: the VM's policy carries
// it out. Before a VM is paged it is asked for its page cache. A configured limit is kept at every
// moment by ceilings (fileballoon/ceilings.h) in the keepers of those VMs that have a store. In
// dry-run mode it says what it would do. Control thread only.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fileballoon/relief.h"
#include "host/arbiter_lock.h"
#include "host/arbiter_settings.h"
#include "host/cgroup_ceiling.h"
#include "host/host_memory.h"
#include "host/vm.h"

namespace fileballoon::host {

class ArbiterLoop {
 public:
  using VmList = std::function<std::vector<std::shared_ptr<Vm>>()>;
  using Clock = Arbiter::Clock;

  /// Two ticks are at least so far apart, however many guests ask for one.
  static constexpr std::chrono::milliseconds kLeastPause{100};
  /// A guest's numbers older than this are no longer its present ones.
  static constexpr std::chrono::seconds kFresh{5};
  /// cgroup files of a VMM are read this often.
  static constexpr std::chrono::seconds kCgroupInterval{5};
  /// No more than this counts between two looks at it, however far the clock jumped.
  static constexpr std::chrono::seconds kLongestCgroupStep{10};
  /// Of a limit this part is not given away as ceilings: each reader of a keeper may go past its
  /// VM's ceiling by 256 KiB, and a page-in holds its piece twice for a moment.
  static constexpr std::uint64_t kLimitMarginPart = 64;

  /// `vms` gives those that take part, each time. All outlive this.
  /// `on_change` is called when a share has moved.
  ArbiterLoop(asio::io_context& control, EventLog& events, ArbiterSettings settings, VmList vms,
              std::function<void()> on_change, HostMemory memory = HostMemory());
  ~ArbiterLoop();

  /// Takes the lock where the mode needs it, and starts. The error says who has it.
  [[nodiscard]] Result<void> start();
  void stop();
  /// A guest takes memory back fast, or a ceiling matters or has come into force: tick now.
  void hurry();

  [[nodiscard]] ArbiterMode mode() const { return settings_.mode; }
  /// Until the daemon ends. Off gives every VM back to its operator. Fails without the lock.
  [[nodiscard]] Result<void> set_mode(ArbiterMode mode);
  /// For all VMs together; nothing: what the host has.
  void set_limit(std::optional<Bytes> limit) { settings_.limit = limit; }

  /// The last tick, or, with `dry_run`, what one would do now; for `arbiter`.
  [[nodiscard]] boost::json::object describe(bool dry_run);
  /// The last decision for a VM; null without one. For `stats`.
  [[nodiscard]] boost::json::value describe_vm(const std::string& name) const;

 private:
  /// A VM in the arbiter's book.
  struct Member {
    VmId id;
    std::weak_ptr<Vm> vm;
    VmSettings settings;
    Relief relief;
    Bytes deflated;                   // by its meter, at the last report
    Bytes resident;                   // likewise
    bool seen = false;                // the numbers above are set
    std::optional<Bytes> asked_back;  // since its keeper began, at the last report
    std::optional<CgroupMemory> cgroup;
    CgroupCeiling cgroup_ceiling;
    Clock::time_point cgroup_at{};
  };
  using Members = std::map<std::string, Member>;

  [[nodiscard]] asio::awaitable<void> run();
  void tick();
  [[nodiscard]] HostReport host_report();
  void take_stock(Arbiter& arbiter, Members& members, Clock::time_point now);
  [[nodiscard]] VmSettings settings_of(const Vm& vm, Member& member, Clock::time_point now);
  [[nodiscard]] static VmReport report_of(const Vm& vm, Member& member);
  void hand_out(Clock::time_point now);
  void keep_limit();
  void relieve(Vm& vm, Member& member, const VmDecision& decision, Clock::time_point now);
  void release_all();
  void open_ceilings();
  [[nodiscard]] boost::json::object summary_of(const TickSummary& summary,
                                               const std::string& host) const;
  [[nodiscard]] static boost::json::object decision_of(const Arbiter& arbiter, VmId id,
                                                       const std::string& name);

  asio::io_context& control_;
  EventLog& events_;
  ArbiterSettings settings_;
  VmList vms_;
  std::function<void()> on_change_;
  HostMemory memory_;
  std::optional<ArbiterLock> lock_;
  Arbiter arbiter_;
  Members members_;
  HostReport host_;
  std::string host_problem_;
  PressureLevel told_level_ = PressureLevel::high;
  bool has_ticked_ = false;
  asio::steady_timer timer_;
  Clock::time_point last_tick_{};
  bool stopping_ = false;
};

}  // namespace fileballoon::host
