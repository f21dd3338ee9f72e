// Vm: one managed guest. Owns its RAM, its session and its memory policy with the actors that carry
// it out, keeps its channel connected for as long as the VMM lives, executes reports on worker
// threads (one at a time and in order per VM, a strand), and counts what became of them. All
// methods on the control thread; nothing here waits for a discard or for a keeper.
#pragma once

#include <array>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "host/asio.h"
#include "host/attachment.h"
#include "host/balloon_actor.h"
#include "host/channel.h"
#include "host/event_log.h"
#include "host/external_actor.h"
#include "host/guest_session.h"
#include "host/policy_runner.h"
#include "host/vm_deflation.h"
#include "host/vm_pager.h"

namespace fileballoon::host {

/// What became of the frames that a guest reported, since the VM was attached.
struct VmCounters {
  std::uint64_t reports = 0;
  std::uint64_t discarded = 0;  ///< frames; likewise below
  std::uint64_t not_zero = 0;
  std::uint64_t refused = 0;
  std::uint64_t failed = 0;
  std::uint64_t cancelled_reports = 0;
  std::uint64_t deflated = 0;  ///< frames that the guest named as gone from its balloon
  std::uint64_t backed = 0;    ///< frames backed again on the guest's request
  std::uint64_t sessions = 0;
  std::uint64_t failed_sessions = 0;
};

class Vm final : public std::enable_shared_from_this<Vm>, private GuestSession::Delegate {
 public:
  using Clock = std::chrono::steady_clock;
  using Workers = asio::thread_pool;

  struct Options {
    std::chrono::milliseconds write_timeout{10'000};
    std::string budget_dir;      ///< where the day's writes to stores are remembered
    std::string control_socket;  ///< for external actors
  };
  /// Threads for what blocks.
  struct Pools {
    Workers& discards;
    asio::thread_pool& pagers;
  };
  /// What is wanted of the VM's memory.
  struct Wanted {
    Limits limits;                 ///< what the agent was told last; floor: the operator's
    std::optional<Bytes> ceiling;  ///< mem-set; absent: RAM less the target of `limits`
    std::optional<Bytes> share;    ///< what an arbiter gave the VM
    MemorySettings settings;
  };
  /// What is known of the VM at this moment, for an arbiter.
  struct Numbers {
    Bytes footprint;
    std::optional<Bytes> available;  ///< the guest's MemAvailable
    std::chrono::nanoseconds age{};  ///< of what the guest said
    Bytes deflated;                  ///< taken back from the balloon since the attach (the meter)
    Bytes resident;
  };

  /// How often the policy looks at what is measured.
  static constexpr std::chrono::milliseconds kPolicyInterval{250};

  /// All but `attachment`, `wanted` and `options` outlive this. What of `wanted` does not fit the
  /// VM is left at its default and told in an event.
  Vm(asio::io_context& control, Pools pools, EventLog& events, Attachment attachment,
     const Wanted& wanted, Options options);
  ~Vm() override;

  /// Starts the channel, the policy and the watch over the VMM; `on_gone` is called once if the VMM
  /// exits, `on_pressure` whenever the guest takes memory back fast or comes close to its ceiling,
  /// and when a ceiling has come into force. The Vm keeps itself alive until it has stopped.
  void start(std::function<void()> on_gone, const std::function<void()>& on_pressure);
  /// Takes leave of the guest (ERROR "detached"), waits for work that runs, frees everything.
  [[nodiscard]] asio::awaitable<void> detach();
  /// Ends everything without a word to the guest: the daemon goes, and will be back.
  void abandon();

  [[nodiscard]] const VmSpec& spec() const { return spec_; }
  [[nodiscard]] const KnownVm& known() const { return known_; }
  [[nodiscard]] const std::vector<std::string>& warnings() const { return known_.warnings; }
  /// What the guest's agent is told now.
  [[nodiscard]] const Limits& limits() const { return balloon_.limits(); }
  /// Target, policy and promise of this VM's memory. After a change of them: steer().
  [[nodiscard]] PolicyRunner& policy() { return *policy_; }
  [[nodiscard]] const PolicyRunner& policy() const { return *policy_; }
  [[nodiscard]] Bytes floor() const { return balloon_.floor(); }
  /// The program in charge; null where the daemon is.
  [[nodiscard]] const std::shared_ptr<ExternalActor>& external() const { return external_; }
  void set_band(int band) { spec_.band = band; }
  void set_floor(Bytes floor);
  /// Judges what is measured and carries out what follows, now.
  void steer();
  /// The policy ends, and all that is paged out comes back. The error says that it cannot, and the
  /// VM stays as it is.
  [[nodiscard]] asio::awaitable<Result<void>> bring_back();
  [[nodiscard]] Numbers numbers() const;
  /// Whether the VM has a store for paged-out frames.
  [[nodiscard]] bool has_pager() const { return pager_ != nullptr; }
  /// Keeps a ceiling, where the VM has a store; null without one.
  [[nodiscard]] const std::shared_ptr<VmPager>& pager() const { return pager_; }
  [[nodiscard]] bool is_leaving() const { return leaving_; }
  [[nodiscard]] const VmCounters& counters() const { return counters_; }
  [[nodiscard]] Bytes ram_size() const { return ram_size_; }
  /// What the guest takes back from its balloon: total since attach, rate, whether it is fast.
  [[nodiscard]] const DeflationMeter& deflation() const { return deflation_->meter(); }
  /// Allocated blocks, now.
  [[nodiscard]] Bytes footprint() const;
  /// Moves the guest's epoch forward: what its page cache has not used since the last time may go.
  /// Returns the new epoch.
  std::uint64_t advance_epoch();
  [[nodiscard]] std::uint64_t epoch() const { return epoch_; }
  /// Chooses the guest's mode for cold page cache, now and in later sessions.
  void set_cache(CacheMode mode);
  /// Asks for `amount` of page cache at once; false where no agent is connected.
  [[nodiscard]] bool purge(Bytes amount);

  /// "connected" (a session stands), "waiting for the guest" (channel open, no agent), or "no
  /// channel".
  [[nodiscard]] std::string state() const;
  /// For `list` and `stats`.
  [[nodiscard]] boost::json::object summary() const;
  [[nodiscard]] boost::json::object stats() const;

 private:
  // GuestSession::Delegate
  void on_established(const wire::Hello& hello, bool rebooted) override;
  void on_session_over() override;
  void on_report(GuestSession::Batch batch, wire::Report report) override;
  void on_populate(GuestSession::Batch batch, wire::Populate request) override;
  void on_stats(const wire::Stats& stats) override;
  void on_deflated(const wire::Deflated& deflated) override;

  [[nodiscard]] asio::awaitable<void> keep_channel();
  [[nodiscard]] asio::awaitable<void> watch_vmm();
  [[nodiscard]] asio::awaitable<void> keep_steering();
  void send_limits();
  void appoint_actor();
  [[nodiscard]] std::uint64_t guest_stat(wire::StatKey key) const;
  void finish_report(GuestSession::Batch batch,
                     std::optional<std::vector<wire::RangeOutcome>> outcomes);
  void release_ram();
  /// Whether POPULATE is offered: the operator allows it, and the owner of the RAM can.
  [[nodiscard]] bool backs_frames() const;
  [[nodiscard]] boost::json::value guest_numbers() const;

  asio::io_context& control_;
  asio::strand<Workers::executor_type> worker_;
  EventLog& events_;
  Options options_;
  VmSpec spec_;
  KnownVm known_;
  std::string vmm_;
  std::shared_ptr<RamOwner> ram_;  // shared with work in flight; null once the VMM is gone
  Bytes ram_size_;
  std::shared_ptr<const RamLayout> layout_;
  UniqueFd first_channel_;
  asio::posix::stream_descriptor pidfd_;
  GuestSession session_;
  std::shared_ptr<Channel> channel_;
  std::function<void()> on_gone_;

  BalloonActor balloon_;
  std::shared_ptr<VmPager> pager_;        // null where frames cannot be paged out
  std::unique_ptr<PolicyRunner> policy_;  // refers to both
  std::shared_ptr<ExternalActor> external_;
  asio::steady_timer steer_timer_;
  bool leaving_ = false;
  std::uint64_t epoch_ = 0;
  VmCounters counters_;
  std::map<wire::StatKey, std::uint64_t> guest_stats_;
  std::optional<Clock::time_point> guest_stats_at_;
  std::shared_ptr<VmDeflation> deflation_;
  std::shared_ptr<std::atomic<bool>> cancelled_;  // of the running session
  std::size_t work_in_flight_ = 0;
  bool stopping_ = false;
  bool channel_loop_done_ = false;
  std::string no_channel_because_;
  Signal changed_;
};

}  // namespace fileballoon::host
